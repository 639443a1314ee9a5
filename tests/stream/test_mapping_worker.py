"""The mapper against a real broker: from a company's topic to ours, each event exactly once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import TopicPartition

from stream.clients import admin, consumer, producer
from stream.dead_letters import EXCEPTION, source_position
from stream.events import Click, Item
from stream.mapping.settings import MappingSettings
from stream.mapping.worker import SOURCE, run_mapper
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, IMPRESSIONS, ITEMS, MAPPED

pytestmark = pytest.mark.broker

PROGRAM = Path(__file__).with_name("doomed_mapper.py")
AT_MS = 1_700_000_000_000
WaitUntil = Callable[[Callable[[], Any]], Any]
StartMapper = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def shop(kafka: KafkaSettings) -> str:
    """A company's topic: three partitions, keyed by whatever."""
    name = f"{kafka.topic_prefix}shop.events"
    with admin(kafka) as client:
        client.create_topics({name: {"num_partitions": 3, "replication_factor": 1}})
    return name


@pytest.fixture
def mapping(shop: str) -> MappingSettings:
    click = {
        "topic": shop,
        "record": "clicks",
        "only_if": "type == 'clicks'",
        "each": "events",
        "fields": {"user_id": "visitor", "item_id": "sku", "timestamp_ms": "at"},
    }
    item = {
        "topic": shop,
        "record": "items",
        "only_if": "type == 'item'",
        "fields": {"item_id": "sku"},
        "each": "events",
    }
    return MappingSettings.model_validate({"sources": [click, item], "chunk_records": 7})


@pytest.fixture
def start_mapper(kafka: KafkaSettings, mapping: MappingSettings) -> Iterator[StartMapper]:
    running: list[subprocess.Popen[str]] = []

    def start(*doom: object) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            PROGRAM,
            kafka.bootstrap_servers,
            kafka.topic_prefix,
            mapping.model_dump_json(),
            *doom,
        ]
        mapper = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        running.append(mapper)
        return mapper

    yield start
    for mapper in running:
        mapper.kill()
        mapper.wait()
        assert mapper.stdout is not None
        mapper.stdout.close()


def send(kafka: KafkaSettings, shop: str, messages: list[dict[str, Any]]) -> None:
    with producer(kafka) as client:
        for number, message in enumerate(messages):
            client.send(shop, msgspec.json.encode(message), key=f"session-{number}".encode())
        client.flush()


def batches(count: int, *, since: int = 0) -> list[dict[str, Any]]:
    """Messages of three clicks by three users."""
    return [
        {
            "events": [
                {"type": "clicks", "visitor": (number + place) % 20, "sku": f"{number}-{place}", "at": AT_MS + number}
                for place in range(3)
            ]
        }
        for number in range(since, since + count)
    ]


def records(kafka: KafkaSettings, name: str) -> list[Any]:
    """All committed records of a topic."""
    with consumer(kafka) as client:
        tps = [TopicPartition(kafka.topic(name), one) for one in client.partitions_for_topic(kafka.topic(name))]
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends = client.end_offsets(tps)
        found: list[Any] = []
        while any(client.position(tp) < ends[tp] for tp in tps):
            found += [record for fetched in client.poll(timeout_ms=500).values() for record in fetched]
        return found


def clicks(kafka: KafkaSettings) -> list[Click]:
    return [msgspec.json.decode(record.value, type=Click) for record in records(kafka, CLICKS)]


@pytest.mark.slow
def test_killed_at_every_step_each_event_of_every_message_stands_once_in_its_users_partition(
    kafka: KafkaSettings, shop: str, start_mapper: StartMapper, wait_until: WaitUntil
) -> None:
    send(kafka, shop, batches(60))

    for step in ("begin_transaction", "send", "send_offsets_to_transaction", "commit_transaction"):
        assert start_mapper(step, 2).wait() == -signal.SIGKILL
    mapper = start_mapper()
    wait_until(lambda: len(clicks(kafka)) >= 180)
    send(kafka, shop, batches(10, since=60))
    wait_until(lambda: len(clicks(kafka)) >= 210)
    mapper.send_signal(signal.SIGTERM)

    assert mapper.wait() == 0
    found = clicks(kafka)
    assert Counter(click.item_id for click in found) == {f"{n}-{place}": 1 for n in range(70) for place in range(3)}
    assert len({click.event_id for click in found}) == 210
    partitions: dict[bytes, set[int]] = {}
    for record in records(kafka, CLICKS):
        assert record.key == msgspec.json.decode(record.value, type=Click).user_id.encode()
        partitions.setdefault(record.key, set()).add(record.partition)
    assert {len(held) for held in partitions.values()} == {1}


def test_what_does_not_fit_is_set_aside_whole_and_the_rest_of_it_goes_on(
    kafka: KafkaSettings, shop: str, mapping: MappingSettings, wait_until: WaitUntil
) -> None:
    good, bad = {"type": "clicks", "visitor": 1, "sku": "a", "at": AT_MS}, {"type": "clicks", "visitor": 1, "at": AT_MS}
    stop = threading.Event()
    mapper = threading.Thread(target=run_mapper, args=(kafka, mapping, stop), kwargs={"member": "mapper"})
    send(
        kafka,
        shop,
        [{"events": [good, bad]}, {"events": [{"type": "login"}]}, {"events": [{"type": "item", "sku": "x"}]}],
    )
    with producer(kafka) as client:
        client.send(shop, b"not json", key=b"k", headers=[("trace", b"1")])
        client.send(shop, None, key=b"gone")
    mapper.start()
    try:
        wait_until(lambda: len(records(kafka, ITEMS)) == 2 and len(records(kafka, MAPPED + DEAD_LETTER_SUFFIX)) == 2)
    finally:
        stop.set()
        mapper.join()

    (click,) = records(kafka, CLICKS)
    headers = dict(click.headers)
    position = headers[SOURCE]
    assert (headers["ce_id"], headers["ce_type"]) == (position, b"sasrec-stream.click.v1")
    assert position.startswith(shop.encode())
    letters = {dict(letter.headers)[EXCEPTION]: letter for letter in records(kafka, MAPPED + DEAD_LETTER_SUFFIX)}
    assert set(letters) == {b"malformed", b"invalid"}
    assert (letters[b"malformed"].key, letters[b"malformed"].value) == (b"k", b"not json")
    assert dict(letters[b"malformed"].headers)["trace"] == b"1"
    assert source_position(letters[b"invalid"].headers).topic == shop
    items = {
        record.key: record.value and msgspec.json.decode(record.value, type=Item) for record in records(kafka, ITEMS)
    }
    assert items == {b"x": Item(item_id="x"), b"gone": None}
    assert not records(kafka, IMPRESSIONS)


@pytest.mark.parametrize(
    ("topic", "message"),
    [("clicks", "is read as it is"), ("nobody-made-this", "the broker does not have")],
)
def test_a_mapping_that_could_only_wait_or_go_in_circles_is_refused(
    kafka: KafkaSettings, topic: str, message: str
) -> None:
    source = {"topic": kafka.topic(topic), "record": "items", "fields": {"item_id": "id"}}
    mapping = MappingSettings.model_validate({"sources": [source]})

    with pytest.raises(ValueError, match=message):
        run_mapper(kafka, mapping, threading.Event(), member="mapper")
    with pytest.raises(ValueError, match="nothing is mapped"):
        run_mapper(kafka, MappingSettings(), threading.Event(), member="mapper")
