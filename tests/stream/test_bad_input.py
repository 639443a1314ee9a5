"""Everything that applications get wrong, in one replay on a real broker: every outcome, then the ledger (I2, I7)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import MessageSizeTooLargeError

from stream.accounts import read_accounts
from stream.clients import admin, consumer, producer
from stream.dead_letters import CUT_FROM, EXCEPTION, MESSAGE, source_position
from stream.sequences import UserState, decode_state
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, IMPRESSIONS, RECOMMENDATIONS, SEQUENCES

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("doomed_worker.py")
INPUTS = (CLICKS, IMPRESSIONS, RECOMMENDATIONS)
CODECS = (None, "gzip", "snappy", "lz4", "zstd")
AT_MS = 1_700_000_000_000
WaitUntil = Callable[[Callable[[], Any]], Any]


class Bad(NamedTuple):
    """A message that goes to the dead letters, and why."""

    topic: str
    value: bytes | None
    reason: str
    says: str
    key: bytes | None = b"u"


def click(**changes: object) -> bytes:
    return json.dumps({"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": AT_MS, **changes}).encode()


def impression(*items: object, **changes: object) -> bytes:
    return json.dumps({"event_id": "e", "user_id": "u", "timestamp_ms": AT_MS, "items": items, **changes}).encode()


def slate(*items: str, **changes: object) -> bytes:
    slots = [{"item_id": item, "position": position} for position, item in enumerate(items)]
    served = {"request_id": "r", "user_id": "u", "policy": "theirs", "generated_at_ms": AT_MS, "items": slots}
    return json.dumps({**served, **changes}).encode()


def without(field: str) -> bytes:
    event = json.loads(click())
    del event[field]
    return json.dumps(event).encode()


def propensity(value: str) -> bytes:
    return impression({"item_id": "i"}).replace(b'"item_id": "i"', b'"item_id": "i", "propensity": ' + value.encode())


BAD = {
    "not JSON": Bad(CLICKS, b"hello", "malformed", "not JSON"),
    "empty": Bad(CLICKS, b"", "malformed", "not JSON"),
    "not UTF-8": Bad(CLICKS, b'{"event_id": "\xff"}', "malformed", "not JSON"),
    "deeply nested": Bad(CLICKS, b'{"more": ' + b"[" * 100_000, "malformed", "not JSON"),
    "a tombstone": Bad(CLICKS, None, "null", "the value is null"),
    "wrong type of an id": Bad(CLICKS, click(item_id=7), "invalid", "Expected `str`, got `int` - at `$.item_id`"),
    "wrong type of a time": Bad(CLICKS, click(timestamp_ms="now"), "invalid", "at `$.timestamp_ms`"),
    "no object": Bad(CLICKS, b"[]", "invalid", "Expected `object`"),
    "missing user": Bad(CLICKS, without("user_id"), "invalid", "missing required field `user_id`"),
    "missing item": Bad(CLICKS, without("item_id"), "invalid", "missing required field `item_id`"),
    "missing event id": Bad(CLICKS, without("event_id"), "invalid", "missing required field `event_id`"),
    "empty id": Bad(CLICKS, click(item_id=""), "invalid", "item_id has 0 bytes"),
    "id of 257 bytes": Bad(CLICKS, click(item_id="ü" * 128 + "i"), "invalid", "item_id has 257 bytes"),
    "null byte": Bad(CLICKS, click(item_id="a\0b"), "invalid", "item_id holds a NUL"),
    "lone surrogate": Bad(CLICKS, click().replace(b'"i"', b'"\\ud800"'), "malformed", "surrogate"),
    "time of 1970": Bad(CLICKS, click(timestamp_ms=86_400_000), "invalid", "is not between 1980 and 2100"),
    "time of 2100": Bad(CLICKS, click(timestamp_ms=4_102_444_800_001), "invalid", "is not between 1980 and 2100"),
    "time in seconds": Bad(CLICKS, click(timestamp_ms=AT_MS // 1_000), "invalid", "looks like seconds"),
    "from the future": Bad(CLICKS, click(timestamp_ms=4_000_000_000_000), "future", "too far ahead"),
    "no key": Bad(CLICKS, click(), "key", "the key is not the user_id", key=None),
    "another key": Bad(CLICKS, click(), "key", "the key is not the user_id", key=b"v"),
    "NaN": Bad(IMPRESSIONS, propensity("NaN"), "malformed", "not JSON"),
    "negative": Bad(IMPRESSIONS, propensity("-0.1"), "invalid", "propensity -0.1 is not in (0, 1]"),
    "zero": Bad(IMPRESSIONS, propensity("0"), "invalid", "propensity 0.0 is not in (0, 1]"),
    "over one": Bad(IMPRESSIONS, propensity("1.5"), "invalid", "propensity 1.5 is not in (0, 1]"),
    "infinite": Bad(IMPRESSIONS, propensity("1e999"), "invalid", "Number out of range"),
    "nothing seen": Bad(IMPRESSIONS, impression(), "invalid", "length >= 1"),
    "an item twice in a slate": Bad(RECOMMENDATIONS, slate("a", "a"), "invalid", "an item stands twice in the slate"),
    "a tombstone of a slate": Bad(RECOMMENDATIONS, None, "null", "the value is null"),
}


@pytest.fixture
def start_worker(kafka: KafkaSettings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), kafka.bootstrap_servers, kafka.topic_prefix, str(tmp_path / "disk")]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for worker in running:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


class Sender:
    """Sends to partition 0, where nobody's key belongs unless it happens to, and remembers what stands where."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self.sent: dict[tuple[str, int], str] = {}

    def send(self, client: KafkaProducer, name: str, topic: str, value: bytes | None, key: bytes | None) -> None:
        place = client.send(self.kafka.topic(topic), value, key=key, partition=0).get(timeout=30)
        self.sent[topic, place.offset] = name

    def all_bad(self) -> None:
        with producer(self.kafka) as client:
            for name, bad in BAD.items():
                self.send(client, name, bad.topic, bad.value, bad.key)

    def odd_but_good(self) -> None:
        """What has an outcome other than a dead letter; each has a user of its own."""
        oddities = [
            ("twice", CLICKS, click(user_id="twice")),
            ("twice", CLICKS, click(user_id="twice")),
            ("same id", CLICKS, click(user_id="same id")),
            ("same id", CLICKS, click(user_id="same id", item_id="j", timestamp_ms=AT_MS + 1)),
            ("ann", RECOMMENDATIONS, slate("a", "b", user_id="ann", request_id="hers")),
            ("bob", CLICKS, click(user_id="bob", item_id="a", request_id="hers", timestamp_ms=AT_MS + 1)),
            ("nobody's item", CLICKS, click(user_id="nobody's item", item_id="never heard of")),
            ("seen twice", IMPRESSIONS, impression({"item_id": "a"}, {"item_id": "a"}, user_id="seen twice")),
            ("empty slate", RECOMMENDATIONS, slate(user_id="empty slate")),
            ("more fields", CLICKS, click(user_id="more fields", colour="red", nested={"a": [1]})),
            ("late", CLICKS, click(user_id="late")),
            ("late", CLICKS, click(user_id="late", event_id="f", timestamp_ms=AT_MS - 86_400_001)),
        ]
        with producer(self.kafka) as client:
            for user, topic, value in oddities:
                self.send(client, user, topic, value, user.encode())

    def compressed(self) -> None:
        for codec in CODECS:
            user = f"codec {codec}"
            with producer(self.kafka, compression_type=codec) as client:
                for number in range(10):
                    value = click(user_id=user, event_id=str(number), item_id=f"i{number}", padding="x" * 1_000)
                    client.send(self.kafka.topic(CLICKS), value, key=user.encode(), partition=0)
                client.flush()

    def too_large(self) -> None:
        """A broker with our topics takes none; one whose topic takes them hands them on."""
        megabytes = click(user_id="large", padding="x" * 10_000_000)
        with producer(self.kafka, max_request_size=1 << 30) as client:
            sent = client.send(self.kafka.topic(CLICKS), megabytes, key=b"large", partition=0)
            with pytest.raises(MessageSizeTooLargeError):
                sent.get(timeout=30)
        topic = ConfigResource(ConfigResourceType.TOPIC, self.kafka.topic(CLICKS), {"max.message.bytes": "20000000"})
        with admin(self.kafka) as client:
            client.alter_configs([topic])
        self._when_taken(megabytes, b"large", "large")
        self._when_taken(megabytes[:-1], b"large", "large and cut short")

    def bomb(self, codec: str) -> None:
        value = click(user_id="bomb", padding="x" * 70_000_000)
        with producer(self.kafka, max_request_size=1 << 30, compression_type=codec) as client:
            self.send(client, f"bomb {codec}", CLICKS, value, b"bomb")

    def transactions(self) -> None:
        """A click that was taken back, and one that was not."""
        with producer(self.kafka, transactional_id=self.kafka.topic("shop")) as client:
            client.init_transactions()
            for user, end in (("taken back", client.abort_transaction), ("kept", client.commit_transaction)):
                client.begin_transaction()
                client.send(self.kafka.topic(CLICKS), click(user_id=user), key=user.encode(), partition=0).get(
                    timeout=30
                )
                end()

    def _when_taken(self, value: bytes, key: bytes, name: str) -> None:
        """The broker learns of the topic's new bound a moment later."""
        deadline = time.monotonic() + 60
        with producer(self.kafka, max_request_size=1 << 30) as client:
            while True:
                try:
                    self.send(client, name, CLICKS, value, key)
                except MessageSizeTooLargeError:
                    assert time.monotonic() < deadline
                else:
                    return


def records(kafka: KafkaSettings, name: str) -> list[Any]:
    tps = [TopicPartition(kafka.topic(name), partition) for partition in range(kafka.partitions)]
    with consumer(kafka) as client:
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends = client.end_offsets(tps)
        found: list[Any] = []
        while any(client.position(tp) < ends[tp] for tp in tps):
            found += [record for fetched in client.poll(timeout_ms=500).values() for record in fetched]
        return found


def states(kafka: KafkaSettings) -> dict[str, UserState]:
    written = [record for record in records(kafka, SEQUENCES) if record.value is not None]
    return {record.key.decode(): decode_state(record.value) for record in written}


def is_finished(kafka: KafkaSettings) -> bool:
    """Whether everything that came in is committed."""
    tps = [TopicPartition(kafka.topic(name), partition) for name in INPUTS for partition in range(kafka.partitions)]
    with consumer(kafka, group_id=kafka.group("stream")) as client:
        ends = client.end_offsets(tps)
        return all((client.committed(tp) or 0) >= ends[tp] for tp in tps)


def test_every_bad_input_has_its_outcome_and_then_the_ledger_balances(
    kafka: KafkaSettings, start_worker: Callable[[], subprocess.Popen[str]], wait_until: WaitUntil
) -> None:
    sender = Sender(kafka)
    sender.all_bad()
    sender.odd_but_good()
    sender.compressed()
    sender.too_large()
    sender.bomb("gzip")
    sender.bomb("zstd")
    sender.transactions()

    worker = start_worker()
    wait_until(lambda: is_finished(kafka))
    ledger = read_accounts(kafka)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait() == 0
    check_letters(kafka, sender)
    check_states(states(kafka))
    assert not [account for account in ledger if account.waiting]
    (of_clicks,) = [account for account in ledger if (account.topic, account.partition) == (CLICKS, 0)]
    assert of_clicks.outcomes["dead"] == sum(bad.topic == CLICKS for bad in BAD.values()) + 3
    assert (of_clicks.outcomes["duplicate"], of_clicks.outcomes["late"]) == (2, 1)
    assert of_clicks.outcomes["markers"] == 3  # the click that was taken back, and both markers
    assert of_clicks.came_in == sum(of_clicks.outcomes.values())


def check_letters(kafka: KafkaSettings, sender: Sender) -> None:
    """Every bad message stands there raw, with its reason, and nothing else does."""
    letters = {
        sender.sent[topic, source_position(record.headers).offset]: record
        for topic in INPUTS
        for record in records(kafka, topic + DEAD_LETTER_SUFFIX)
    }
    assert set(letters) == {*BAD, "large and cut short", "bomb gzip", "bomb zstd"}
    for name, bad in BAD.items():
        headers = dict(letters[name].headers)
        assert (letters[name].key, letters[name].value) == (bad.key, bad.value), name
        assert headers[EXCEPTION].decode() == bad.reason, name
        assert bad.says in headers[MESSAGE].decode(), name
    for name in ("large and cut short", "bomb gzip", "bomb zstd"):
        headers = dict(letters[name].headers)
        assert int(headers[CUT_FROM]) >= 10_000_000, name
        assert len(letters[name].value) < kafka.max_message_bytes, name
    assert b"bytes are more than is read" in dict(letters["bomb zstd"].headers)[MESSAGE]


def check_states(user: dict[str, UserState]) -> None:
    """What was odd but good, by its user."""
    assert (user["twice"].clicks_applied, user["twice"].accounts.clicks_duplicate) == (1, 1)
    assert (user["same id"].items, user["same id"].accounts.clicks_duplicate) == (("i",), 1)
    assert (user["late"].clicks_applied, user["late"].accounts.clicks_late) == (1, 1)
    assert (user["bob"].items, [parked.request_id for parked in user["bob"].parked]) == (("a",), ["hers"])
    assert all(not shown.clicks for shown in (*user["ann"].slates, *user["ann"].closed))
    assert user["nobody's item"].items == ("never heard of",)
    assert (user["seen twice"].accounts.items_seen, user["seen twice"].accounts.items_duplicate) == (2, 1)
    assert user["empty slate"].accounts.slates == 1
    assert user["more fields"].clicks_applied == user["large"].clicks_applied == user["kept"].clicks_applied == 1
    assert {codec: user[f"codec {codec}"].clicks_applied for codec in CODECS} == dict.fromkeys(CODECS, 10)
    assert "taken back" not in user
    assert "bomb" not in user
    assert "u" not in user
