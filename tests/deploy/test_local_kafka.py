from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.kafka import LocalKafka
from deploy.local.kafka_settings import HOST, choose_port, free_port
from stream.admin import create_topics
from stream.clients import consumer, producer
from stream.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("broker")]

START = """
import pathlib, sys
from deploy.local.kafka import LocalKafka
LocalKafka(pathlib.Path(sys.argv[1]), port=0).start()
"""
WaitUntil = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalKafka]:
    """A Kafka of the test's own, not started."""
    own = LocalKafka(tmp_path / "kafka", port=0)
    yield own
    own.kill()


def topics_on(local: LocalKafka) -> KafkaSettings:
    settings = KafkaSettings(bootstrap_servers=local.bootstrap_servers, partitions=2)
    create_topics(settings)
    return settings


def all_values(kafka: KafkaSettings, topic: str, count: int) -> list[bytes]:
    """What the topic holds, read until `count` messages and a poll that brings no more."""
    values: list[bytes] = []
    with consumer(kafka, group_id="reader") as reader:
        reader.subscribe([kafka.topic(topic)])
        while records := reader.poll(timeout_ms=5_000 if len(values) < count else 500):
            values += [record.value for batch in records.values() for record in batch]
    return values


def test_any_process_finds_and_stops_what_another_has_started(local: LocalKafka) -> None:
    subprocess.run([sys.executable, "-c", START, local.log.parent], check=True)

    pid = local.pid

    assert local.status() == (pid, local.bootstrap_servers, local.log)
    local.stop()
    assert local.status() == (None, None, local.log)
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_starting_what_runs_changes_nothing(local: LocalKafka) -> None:
    address = local.start()
    pid = local.pid

    assert local.start() == address
    assert local.pid == pid


def test_topics_and_address_survive_a_restart(local: LocalKafka) -> None:
    address = local.start()
    kafka = topics_on(local)
    local.stop()

    assert local.start() == address
    assert create_topics(kafka) == []


def test_a_broker_killed_while_it_is_written_to_comes_back_with_every_message_once(local: LocalKafka) -> None:
    address = local.start()
    kafka = topics_on(local)
    sent = [str(number).encode() for number in range(5_000)]

    with producer(kafka) as sender:
        futures = [sender.send(kafka.topic("clicks"), value, key=value) for value in sent]
        futures[1_000].get(timeout=30)
        local.kill()
        assert not local.is_running
        assert local.start() == address
        sender.flush(timeout=60)

    assert all(future.succeeded() for future in futures)
    assert sorted(all_values(kafka, "clicks", len(sent))) == sorted(sent)


def test_a_port_that_was_taken_meanwhile_is_passed_over(local: LocalKafka) -> None:
    address = local.start()
    local.stop()

    with socket.create_server((HOST, int(address.split(":")[1]))):
        assert local.start() != address
        assert topics_on(local).bootstrap_servers == local.bootstrap_servers


def test_the_earlier_port_comes_before_the_usual_one_and_a_wanted_port_before_both() -> None:
    earlier, wanted = free_port(), free_port()

    assert choose_port(None, earlier) == earlier
    assert choose_port(wanted, earlier) == wanted


def test_a_wanted_port_that_is_taken_is_refused() -> None:
    port = free_port()

    with socket.create_server((HOST, port)), pytest.raises(ValueError, match=f"port {port} is taken"):
        choose_port(port, None)


def test_a_stranger_that_was_given_the_number_of_a_dead_broker_is_left_alone(local: LocalKafka) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    local.log.parent.mkdir()
    (local.log.parent / "kafka.pid").write_text(str(stranger.pid))

    local.stop()

    assert not local.is_running
    assert stranger.poll() is None
    stranger.communicate()


def test_a_broker_that_ends_at_its_start_shows_the_end_of_its_log_and_where_it_is(local: LocalKafka) -> None:
    local.start()
    local.stop()
    (local.log.parent / "data" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=other\n")

    with pytest.raises(ValueError, match="ended before it answered") as refused:
        local.start()

    assert str(local.log.absolute()) in str(refused.value)
    assert "node" in str(refused.value)
    assert not local.is_running


def test_a_broker_that_stops_by_itself_is_seen_as_stopped(local: LocalKafka, wait_until: WaitUntil) -> None:
    local.start()
    pid = local.pid
    assert pid is not None

    psutil.Process(pid).send_signal(signal.SIGKILL)

    wait_until(lambda: not local.is_running)


def test_two_that_start_at_once_and_want_the_same_port_get_brokers_of_their_own(tmp_path: Path) -> None:
    wanted = free_port()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "server.properties").write_text(f"advertised.listeners=PLAINTEXT://{HOST}:{wanted}\n")
    brokers = [LocalKafka(folder) for folder in folders]

    try:
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(LocalKafka.start, brokers))
        assert len(set(servers)) == 2
        assert f"{HOST}:{wanted}" in servers
        assert all(broker.is_running for broker in brokers)
    finally:
        for broker in brokers:
            broker.kill()
