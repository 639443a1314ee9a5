"""`sasrec-stream run`: every process starts, works, and ends cleanly."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.cli.run import Kind, member_name, refuse_second
from deploy.observe.endpoint import RunningProcess, metrics_endpoint, process_file, read_process
from deploy.settings import Settings, StateSettings
from stream.clients import consumer, producer
from stream.events import Recommendation, Request
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS, REQUESTS

WaitUntil = Callable[[Callable[[], Any]], Any]


class Started:
    """A process of ours, and what it wrote to standard error."""

    def __init__(self, kafka: KafkaSettings, state: Path, *arguments: str) -> None:
        options = ["--bootstrap-servers", kafka.bootstrap_servers, "--state-directory", str(state)]
        environment = {
            "SASREC__KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
            "SASREC__KAFKA__PARTITIONS": str(kafka.partitions),
        }
        self._log = state / "log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "deploy.cli", *options, *arguments]
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def asked_to_end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def started(kafka: KafkaSettings, state: Path, *arguments: str) -> Iterator[Started]:
    begun = Started(kafka, state, *arguments)
    try:
        yield begun
    finally:
        begun.process.kill()
        begun.process.wait()


def answers(running: RunningProcess) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics") as answer:
        return bool(answer.status == 200)


@pytest.mark.broker
@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.MAPPER])  # which needs something to map
def test_a_process_serves_its_metrics_and_ends_cleanly_when_asked(
    kafka: KafkaSettings, tmp_path: Path, wait_until: WaitUntil, kind: Kind
) -> None:
    with started(kafka, tmp_path, "run", kind) as begun:
        wait_until(lambda: begun.process.poll() is not None or read_process(tmp_path, kind))
        running = read_process(tmp_path, kind)
        assert running is not None, begun.log
        assert running.pid == begun.process.pid
        assert answers(running)
        status = begun.asked_to_end()

    assert status == 0, begun.log
    assert not process_file(tmp_path, kind).exists()


@pytest.mark.broker
def test_a_scoring_process_answers_requests_and_ends_cleanly_at_work(
    kafka: KafkaSettings, tmp_path: Path, wait_until: WaitUntil
) -> None:
    request = Request(event_id="page", user_id="ann", timestamp_ms=1_700_000_000_000)
    with started(kafka, tmp_path, "run", "scoring", "--name", "scoring-7") as begun, producer(kafka) as sender:
        sender.send(kafka.topic(REQUESTS), msgspec.json.encode(request), key=b"ann")
        with consumer(kafka) as reader:
            reader.subscribe([kafka.topic(RECOMMENDATIONS)])
            (records,) = wait_until(lambda: reader.poll(timeout_ms=100)).values()
        status = begun.asked_to_end()

    assert status == 0, begun.log
    assert [msgspec.json.decode(record.value, type=Recommendation).request_id for record in records] == ["page"]
    assert all(json.loads(line)["process"] == "scoring-7" for line in begun.log.splitlines())


@pytest.mark.broker
def test_missing_topics_end_a_process_with_one_line_that_says_what_to_do(kafka: KafkaSettings, tmp_path: Path) -> None:
    nowhere = kafka.model_copy(update={"topic_prefix": "nobody-made-these."})
    with started(nowhere, tmp_path, "run", "scoring") as begun:
        status = begun.process.wait(timeout=60)

    assert status == 2
    assert "sasrec-stream topics create" in begun.log.splitlines()[-1]
    assert "Traceback" not in begun.log


def test_a_second_process_of_the_same_name_is_refused(tmp_path: Path) -> None:
    settings = Settings(state=StateSettings(directory=tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        now_ms = 4_102_444_800_000
        running = RunningProcess(name="scoring", pid=other.pid, metrics_port=1, started_at_ms=now_ms)
        _leave(tmp_path, running)

        with pytest.raises(ValueError, match=rf"scoring runs already .* \(pid {other.pid}\); .* --name"):
            refuse_second(settings, "scoring")
        refuse_second(settings, "scoring-2")
        other.communicate(b"\n")

    refuse_second(settings, "scoring")


def test_a_pid_that_has_gone_to_another_process_refuses_nobody(tmp_path: Path) -> None:
    settings = Settings(state=StateSettings(directory=tmp_path))
    _leave(tmp_path, RunningProcess(name="scoring", pid=1, metrics_port=1, started_at_ms=0))

    refuse_second(settings, "scoring")

    with metrics_endpoint(settings, name="scoring"):
        refuse_second(settings, "scoring")


def test_a_workers_name_in_its_group_is_its_own_and_stays(tmp_path: Path) -> None:
    here, there = (Settings(state=StateSettings(directory=tmp_path / name)) for name in ("here", "there"))

    assert member_name(here, "scoring") == member_name(here, "scoring")
    assert len({member_name(here, "scoring"), member_name(here, "scoring-2"), member_name(there, "scoring")}) == 3


def _leave(state: Path, running: RunningProcess) -> None:
    file = process_file(state, running.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'{{"name":"{running.name}","pid":{running.pid},"metrics_port":1,"started_at_ms":{running.started_at_ms}}}'
    )
