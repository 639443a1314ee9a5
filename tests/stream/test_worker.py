from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import TopicPartition
from kafka.errors import CommitFailedError
from kafka.structs import OffsetAndMetadata
from msgspec.json import encode

from stream.accounts import read_accounts
from stream.batches import FENCE
from stream.clients import consumer, producer
from stream.dead_letters import EXCEPTION, source_position
from stream.events import Click, Impression, Recommendation, RecommendedItem, SeenItem
from stream.examples import ClickExample, Example, ExampleId, SlateExample, decode_example
from stream.folding import SOURCES, Folder
from stream.sequences import decode_state
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, EXAMPLES, IMPRESSIONS, RECOMMENDATIONS, SEQUENCES
from tests.rows import Store

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("doomed_worker.py")
PARTITIONS = (0, 1)
START_MS = 1_700_000_000_000

StartWorker = Callable[..., subprocess.Popen[str]]
WaitUntil = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def start_worker(kafka: KafkaSettings, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts a worker and waits until it reads; on a disk of its name, so the same name is the same machine."""
    running: list[subprocess.Popen[str]] = []

    def start(*doom: object, disk: str = "disk") -> subprocess.Popen[str]:
        command = [sys.executable, PROGRAM, kafka.bootstrap_servers, kafka.topic_prefix, tmp_path / disk, *doom]
        with (tmp_path / "log").open("a") as log:
            worker = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True)
        running.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", (tmp_path / "log").read_text()[-5_000:]
        return worker

    yield start
    for worker in running:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


def stop(worker: subprocess.Popen[str]) -> int:
    worker.send_signal(signal.SIGTERM)
    return worker.wait()


def kill(worker: subprocess.Popen[str]) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()


def send(kafka: KafkaSettings, events: Sequence[Click | Impression | Recommendation]) -> None:
    names = {Click: CLICKS, Impression: IMPRESSIONS, Recommendation: RECOMMENDATIONS}
    with producer(kafka) as client:
        for event in events:
            client.send(kafka.topic(names[type(event)]), key=event.user_id.encode(), value=encode(event))
        client.flush()


def records(kafka: KafkaSettings, name: str) -> list[Any]:
    """All that stands on a topic, partition by partition."""
    tps = [TopicPartition(kafka.topic(name), partition) for partition in PARTITIONS]
    found: dict[int, list[Any]] = {partition: [] for partition in PARTITIONS}
    with consumer(kafka) as client:
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends = client.end_offsets(tps)
        while any(client.position(tp) < ends[tp] for tp in tps):
            for tp, fetched in client.poll(timeout_ms=500).items():
                found[tp.partition] += fetched
    return [record for partition in PARTITIONS for record in found[partition]]


def sequences(kafka: KafkaSettings) -> dict[bytes, bytes]:
    """What compaction leaves of `sequences`."""
    last = {record.key: record.value for record in records(kafka, SEQUENCES)}
    return {key: state for key, state in last.items() if state is not None}


def whole(found: Sequence[Any]) -> list[tuple[bytes, bytes | None]]:
    """Keys and values, in an order that does not depend on when they were read."""
    return sorted(((record.key, record.value) for record in found), key=repr)


def has_more(kafka: KafkaSettings, count: int) -> bool:
    return len(records(kafka, SEQUENCES)) > count


def learnt(kafka: KafkaSettings) -> list[Example]:
    """The examples that a trainer keeps which remembers one highest id per source partition."""
    marks: dict[tuple[str, int], ExampleId] = {}
    kept = []
    for record in records(kafka, EXAMPLES):
        example = decode_example(record.value)
        source = example.id.source, example.id.partition
        if source not in marks or example.id > marks[source]:
            marks[source] = example.id
            kept.append(example)
    return kept


def is_finished(kafka: KafkaSettings) -> bool:
    """Whether everything that came in is committed."""
    tps = [TopicPartition(kafka.topic(name), partition) for name in SOURCES for partition in PARTITIONS]
    with consumer(kafka, group_id=kafka.group("stream")) as client:
        ends = client.end_offsets(tps)
        return all((client.committed(tp) or 0) >= ends[tp] for tp in tps)


def rewound(kafka: KafkaSettings) -> bool:
    """Commits the beginning of every input, as if nothing had been read; not as long as the group has a member."""
    tps = [TopicPartition(kafka.topic(name), partition) for name in SOURCES for partition in PARTITIONS]
    with consumer(kafka, group_id=kafka.group("stream")) as client:
        client.assign(tps)
        try:
            client.commit({tp: OffsetAndMetadata(0, "", -1) for tp in tps})
        except CommitFailedError:
            return False
    return True


def undisturbed(kafka: KafkaSettings) -> tuple[dict[bytes, bytes], list[Example]]:
    """What the pure fold makes of the clicks that stand on the topic, in one piece."""
    states: dict[bytes, bytes] = {}
    examples: list[Example] = []
    clicks = records(kafka, CLICKS)
    for partition in PARTITIONS:
        chunk = [record for record in clicks if record.partition == partition]
        folded = Folder(kafka, StreamSettings()).fold(chunk, Store())
        states |= {key: row for key, row in folded.states.items() if row is not None}
        examples += folded.examples
    return states, examples


def clicks(count: int, *, users: int = 20, since: int = 0) -> list[Click]:
    """Clicks of users who take turns; every seventh is sent twice, every eleventh comes late."""
    events = [
        Click(
            event_id=f"c{number}",
            user_id=f"user-{number % users}",
            item_id=f"item-{number % 37}",
            timestamp_ms=START_MS + number * 1_000 - (30_000 if number % 11 == 0 else 0),
        )
        for number in range(since, since + count)
    ]
    return [again for number, event in enumerate(events) for again in [event] * (2 if number % 7 == 0 else 1)]


def visits(count: int, *, users: int = 20, since: int = 0) -> list[Click | Impression | Recommendation]:
    """Users are served two items, see both, and choose one."""
    events: list[Click | Impression | Recommendation] = []
    for number in range(since, since + count):
        user, at_ms, name = f"user-{number % users}", START_MS + number * 1_000, f"slate-{number}"
        items = f"item-{number % 37}", f"item-{(number + 1) % 37}"
        slots = tuple(RecommendedItem(item_id=item, position=slot) for slot, item in enumerate(items))
        seen = tuple(SeenItem(item_id=item) for item in items)
        events += [
            Recommendation(request_id=name, user_id=user, policy="p", generated_at_ms=at_ms, items=slots),
            Impression(event_id=f"v{number}", user_id=user, timestamp_ms=at_ms, items=seen, request_id=name),
            Click(event_id=f"c{number}", user_id=user, item_id=items[0], timestamp_ms=at_ms + 500, request_id=name),
        ]
    return events


def test_killed_at_every_step_and_at_random_the_topics_hold_what_an_undisturbed_run_would_have_written(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    for nth, step in enumerate(("folded", "half the examples", "examples", "states", "stored")):
        send(kafka, clicks(400, since=nth * 400))
        assert start_worker(step, 2).wait() == -signal.SIGKILL
    for nth in range(5, 7):
        send(kafka, clicks(2_000, since=nth * 2_000))
        worker = start_worker()
        wait_until(functools.partial(has_more, kafka, len(records(kafka, SEQUENCES))))
        kill(worker)
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))

    assert stop(worker) == 0
    states, examples = undisturbed(kafka)
    assert sequences(kafka) == states
    assert learnt(kafka) == examples
    assert not [account for account in read_accounts(kafka) if account.waiting]


def test_killed_between_examples_and_states_every_click_and_slate_is_told_once_whichever_topic_is_read_first(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    events = visits(400)
    send(kafka, events)

    for step, chunks in (("examples", 3), ("half the examples", 4), ("examples", 2)):
        assert start_worker(step, chunks).wait() == -signal.SIGKILL
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))
    much_later = clicks(20, since=10_000)
    send(kafka, much_later)
    wait_until(lambda: is_finished(kafka))

    assert stop(worker) == 0
    told = learnt(kafka)
    clicks_told = [(example.user_id, example.timestamp_ms) for example in told if isinstance(example, ClickExample)]
    assert sorted(clicks_told) == sorted(
        {(event.user_id, event.timestamp_ms) for event in [*events, *much_later] if isinstance(event, Click)}
    )
    slates = [example for example in told if isinstance(example, SlateExample)]
    clicked = [slate.request_id for slate in slates for item in slate.items if item.clicked]
    assert len(set(clicked)) == len(clicked)
    assert not [account for account in read_accounts(kafka) if account.waiting]


def test_an_empty_disk_is_filled_from_sequences_and_what_is_delivered_again_changes_nothing(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    send(kafka, clicks(500))
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))
    assert stop(worker) == 0
    states, examples = records(kafka, SEQUENCES), records(kafka, EXAMPLES)

    wait_until(lambda: rewound(kafka))
    worker = start_worker(disk="another")
    wait_until(lambda: is_finished(kafka))
    fences: list[tuple[bytes, bytes | None]] = [(FENCE, None) for _ in PARTITIONS]
    assert whole(records(kafka, SEQUENCES)) == sorted(whole(states) + fences, key=repr)
    last = {record.partition: record for record in examples}
    assert whole(records(kafka, EXAMPLES)) == sorted(whole([*examples, *last.values()]), key=repr)

    send(kafka, clicks(500, since=500))
    wait_until(lambda: is_finished(kafka))
    assert stop(worker) == 0
    rows, told = undisturbed(kafka)
    assert sequences(kafka) == rows
    assert learnt(kafka) == told


def test_a_worker_joins_another_and_carries_on_alone_when_that_one_is_killed(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    send(kafka, clicks(2_000))
    first = start_worker(disk="first")
    second = start_worker(disk="second")
    send(kafka, clicks(2_000, since=2_000))
    wait_until(lambda: len(sequences(kafka)) == 20)
    kill(first)
    send(kafka, clicks(500, since=4_000))
    wait_until(lambda: is_finished(kafka))

    assert stop(second) == 0
    states, examples = undisturbed(kafka)
    assert sequences(kafka) == states
    assert learnt(kafka) == examples


@pytest.mark.parametrize("step", ["folded", "examples"])
def test_a_worker_that_was_paused_past_its_time_writes_nothing_when_it_wakes(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path, step: str
) -> None:
    log = tmp_path / "log"
    send(kafka, clicks(300))
    paused = start_worker(step, 2, "SIGSTOP", disk="paused")
    wait_until(lambda: psutil.Process(paused.pid).status() == psutil.STATUS_STOPPED)
    successor = start_worker(disk="successor")
    wait_until(lambda: is_finished(kafka))
    send(kafka, clicks(300, since=300))
    wait_until(lambda: is_finished(kafka))

    paused.send_signal(signal.SIGCONT)
    assert paused.wait() not in (0, -signal.SIGKILL)

    assert "ProducerFenced" in log.read_text()
    assert stop(successor) == 0
    states, examples = undisturbed(kafka)
    assert sequences(kafka) == states
    assert learnt(kafka) == examples


def test_through_kills_at_random_every_message_ends_in_one_account(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    dice = random.Random(3)
    for nth in range(4):
        send(kafka, [*visits(300, since=nth * 300), *clicks(300, users=30, since=10_000 + nth * 300)])
        with producer(kafka) as client:
            for partition in PARTITIONS:
                client.send(kafka.topic(CLICKS), key=b"u", value=b"{", partition=partition)
            client.flush()
        worker = start_worker()
        wait_until(functools.partial(has_more, kafka, len(records(kafka, SEQUENCES))))
        time.sleep(dice.uniform(0, 0.05))  # reason: a random moment
        kill(worker)
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))

    assert stop(worker) == 0
    ledger = {(line.topic, line.partition): line for line in read_accounts(kafka)}
    assert not [line for line in ledger.values() if line.waiting]
    for name in (CLICKS, IMPRESSIONS, RECOMMENDATIONS):
        read = Counter(record.partition for record in records(kafka, name))
        assert {partition: ledger[name, partition].came_in for partition in PARTITIONS} == read
    dead = [ledger[CLICKS, partition].outcomes["dead"] for partition in PARTITIONS]
    assert dead == [4, 4]
    known = Counter(line.topic for line in ledger.values() for _ in range(line.outcomes.get("applied", 0)))
    assert known == {CLICKS: 1_200 + 1_200, IMPRESSIONS: 1_200, RECOMMENDATIONS: 1_200}
    told = learnt(kafka)
    assert sum(isinstance(example, ClickExample) for example in told) == known[CLICKS]


UNREADABLE: dict[str, tuple[bytes | None, bytes | None, bytes]] = {
    "null": (b"u", None, b"null"),
    "not JSON": (b"u", b"{", b"malformed"),
    "not UTF-8": (b"u", b'{"event_id": "\xff"}', b"malformed"),
    "nested too deep": (b"u", b'{"more": ' + b"[" * 100_000, b"malformed"),
    "a list": (b"u", b"[]", b"invalid"),
    "no user": (b"u", b'{"event_id": "e", "item_id": "i", "timestamp_ms": 1700000000000}', b"invalid"),
    "empty item": (
        b"u",
        b'{"event_id": "e", "user_id": "u", "item_id": "", "timestamp_ms": 1700000000000}',
        b"invalid",
    ),
    "NUL": (
        b"u",
        b'{"event_id": "e", "user_id": "u", "item_id": "\\u0000", "timestamp_ms": 1700000000000}',
        b"invalid",
    ),
    "surrogate": (
        b"u",
        b'{"event_id": "e", "user_id": "u", "item_id": "\\ud800", "timestamp_ms": 1700000000000}',
        b"malformed",
    ),
    "seconds": (b"u", b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 1700000000}', b"invalid"),
    "future": (b"u", b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 4000000000000}', b"future"),
    "another key": (b"v", b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 1700000000000}', b"key"),
    "no key": (None, b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 1700000000000}', b"key"),
}


def test_what_cannot_be_read_goes_to_the_dead_letters_as_it_came_and_the_stream_goes_on(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    with producer(kafka) as client:
        for key, value, _ in UNREADABLE.values():
            client.send(kafka.topic(CLICKS), key=key, value=value, partition=0, headers=[("trace", b"1")])
        client.flush()
    send(kafka, clicks(10))
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))

    assert stop(worker) == 0
    dead = {source_position(record.headers).offset: record for record in records(kafka, CLICKS + DEAD_LETTER_SUFFIX)}
    for offset, (kind, (key, value, reason)) in enumerate(UNREADABLE.items()):
        record = dead.pop(offset)
        headers = dict(record.headers)
        assert (record.partition, record.key, record.value) == (0, key, value), kind
        assert (headers["trace"], headers[EXCEPTION]) == (b"1", reason), kind
    assert not dead
    assert not [account for account in read_accounts(kafka) if account.waiting]
    assert sum(decode_state(state).clicks_applied for state in sequences(kafka).values()) == 10


def test_what_a_transaction_took_back_is_never_applied_and_its_markers_are_told_from_what_waits(
    kafka: KafkaSettings, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    kept, taken_back = clicks(7)[:5], clicks(7, since=100)
    with producer(kafka, transactional_id=kafka.topic_prefix) as client:
        client.init_transactions()
        for events, end in ((kept, client.commit_transaction), (taken_back, client.abort_transaction)):
            client.begin_transaction()
            for event in events:
                client.send(kafka.topic(CLICKS), key=event.user_id.encode(), value=encode(event), partition=0)
            client.flush()
            end()
    worker = start_worker()
    wait_until(lambda: is_finished(kafka))

    assert stop(worker) == 0
    assert sum(decode_state(state).clicks_applied for state in sequences(kafka).values()) == len(set(kept))
    (account,) = [line for line in read_accounts(kafka) if (line.topic, line.partition) == (CLICKS, 0)]
    assert account.outcomes["markers"] == len(taken_back) + 2
    assert account.waiting == 0
