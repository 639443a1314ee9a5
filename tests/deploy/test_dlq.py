"""Dead letters on a real broker: listed, shown, and sent back once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from typer.testing import CliRunner

from deploy.cli.main import app
from stream.clients import consumer, producer
from stream.dead_letters import REPLAYS, Headers, UnreadableError, dead_letter
from stream.letters import read_letters, superseded, why_not
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, EXAMPLES, ITEMS

pytestmark = pytest.mark.broker

NO_HEADERS: Headers = []
Invoke = Callable[..., str]


class Raw(NamedTuple):
    topic: str
    offset: int
    value: bytes | None = b"{"
    partition: int = 1
    key: bytes | None = b"ann"
    headers: Headers = NO_HEADERS


@pytest.fixture
def invoke(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("SASREC__KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("SASREC__KAFKA__PARTITIONS", str(kafka.partitions))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dlq", *arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return run


def bury(kafka: KafkaSettings, *records: Raw, reason: Any = "malformed", max_bytes: int = 1_000_000) -> None:  # noqa: ANN401 - a reason
    """Writes dead letters as the stream worker does."""
    with producer(kafka) as client:
        for record in records:
            letter = dead_letter(record, UnreadableError(reason, "not JSON: \x1b[31m"), max_bytes=max_bytes)
            client.send(
                record.topic + DEAD_LETTER_SUFFIX,
                letter.value,
                key=letter.key,
                headers=letter.headers,
                partition=record.partition,
            )
        client.flush()


def standing(kafka: KafkaSettings, name: str) -> list[Any]:
    tps = [TopicPartition(kafka.topic(name), partition) for partition in range(kafka.partitions)]
    with consumer(kafka) as client:
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends = client.end_offsets(tps)
        found: list[Any] = []
        while any(client.position(tp) < ends[tp] for tp in tps):
            found += [record for records in client.poll(timeout_ms=200).values() for record in records]
        return found


def test_a_letter_is_sent_back_raw_and_once_and_one_that_fails_again_is_left(
    kafka: KafkaSettings, invoke: Invoke
) -> None:
    topic = kafka.topic(CLICKS)
    bury(
        kafka,
        Raw(topic, 4, b"\xff\0{", headers=[("trace", b"1")]),
        Raw(topic, 4, b"\xff\0{", headers=[("trace", b"1")]),
    )

    assert "1 would be sent back" in invoke("replay", "clicks", "--dry-run")
    assert "1 sent back" in invoke("replay", "clicks")
    assert "1 left: sent back already, as 1:0" in invoke("replay", "clicks")

    (back,) = standing(kafka, CLICKS)
    assert (back.partition, back.key, back.value) == (1, b"ann", b"\xff\0{")
    assert dict(back.headers) == {"trace": b"1", REPLAYS: b"1"}
    bury(kafka, Raw(topic, back.offset, back.value, headers=list(back.headers)))
    again = invoke("replay", "clicks")
    assert "1 left: it failed again after 1 replays" in again
    assert "0 sent back" in again
    assert "1 sent back" in invoke("replay", "clicks", "--max-replays", "2")
    assert dict(standing(kafka, CLICKS)[-1].headers)[REPLAYS] == b"2"


def test_letters_are_counted_listed_and_shown_without_control_characters(kafka: KafkaSettings, invoke: Invoke) -> None:
    topic = kafka.topic(CLICKS)
    bury(kafka, Raw(topic, 4, b"\x1b[2Jhello", headers=[("trace", b"\x1b")]), Raw(topic, 9))
    bury(kafka, Raw(topic, 11), reason="key")

    counts, listed = invoke("list"), invoke("list", "clicks", "--reason", "malformed")
    shown = invoke("show", "clicks", "1:4")

    assert "key" in counts
    assert "1:4" in listed
    assert "1:11" not in listed
    assert "value, 9 bytes: \\x1b[2Jhello" in shown
    assert "header trace: \\x1b" in shown
    assert "\x1b" not in counts + listed + shown


def test_only_what_is_named_is_sent_back(kafka: KafkaSettings, invoke: Invoke) -> None:
    topic = kafka.topic(CLICKS)
    bury(kafka, *(Raw(topic, offset, str(offset).encode()) for offset in range(4)))
    bury(kafka, Raw(topic, 4, b"4"), reason="key")

    invoke("replay", "clicks", "--position", "1:1", "--position", "1:2")
    invoke("replay", "clicks", "--reason", "key")
    invoke("replay", "clicks", "--limit", "1")

    assert sorted(record.value for record in standing(kafka, CLICKS)) == [b"0", b"1", b"2", b"4"]


def test_what_was_cut_and_what_came_from_elsewhere_is_never_sent_back(kafka: KafkaSettings, invoke: Invoke) -> None:
    bury(kafka, Raw(kafka.topic(CLICKS), 1, bytes(5_000)), max_bytes=2_000)
    letter = dead_letter(Raw("elsewhere", 1), UnreadableError("malformed", "no"), max_bytes=10_000)
    with producer(kafka) as client:
        client.send(kafka.topic(CLICKS) + DEAD_LETTER_SUFFIX, letter.value, key=letter.key, headers=letter.headers)
        client.send(kafka.topic(CLICKS) + DEAD_LETTER_SUFFIX, b"not a letter")

    said = invoke("replay", "clicks")

    assert "1 left: only a part of its 5000 bytes was kept" in said
    assert "1 left: it says that it came from elsewhere, which is not read any more" in said
    assert not standing(kafka, CLICKS)


def test_an_item_that_was_described_anew_is_not_overwritten_by_its_old_letter(kafka: KafkaSettings) -> None:
    with producer(kafka) as client:
        old = client.send(kafka.topic(ITEMS), key=b"i", value=b"broken").get(timeout=10).offset
        lone = client.send(kafka.topic(ITEMS), key=b"j", value=b"broken").get(timeout=10).offset
        client.send(kafka.topic(ITEMS), key=b"i", value=b'{"item_id":"i"}').get(timeout=10)
    bury(kafka, *(Raw(kafka.topic(ITEMS), at, partition=0, key=key) for at, key in ((old, b"i"), (lone, b"j"))))

    letters = read_letters(kafka, ITEMS)

    assert [one.offset for one in superseded(kafka, letters)] == [old]


def test_examples_are_not_replayed(kafka: KafkaSettings) -> None:
    bury(kafka, Raw(kafka.topic(EXAMPLES), 0), reason="not_finite")

    (letter,) = read_letters(kafka, EXAMPLES)

    assert "full retrain" in (why_not(letter, EXAMPLES, sources=[kafka.topic(EXAMPLES)], max_replays=9) or "")
    assert letter.at_ms <= time.time() * 1_000


def test_a_topic_without_dead_letters_is_named(kafka: KafkaSettings) -> None:
    with pytest.raises(ValueError, match="sequences has no dead letters; clicks, "):
        read_letters(kafka, "sequences")
