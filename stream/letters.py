"""The dead letters as they stand, and how one is sent back to where it came from.

A message that is sent back carries how often that was done (`sasrec-replays`): one that fails again says so and is left
alone by the next replay. A mark on the dead-letter topic says what was sent back, so that nothing is twice. A replay
that is killed between the two sends at most one chunk again, and the join takes a repeated event for what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from stream.clients import consumer
from stream.dead_letters import (
    CUT_FROM,
    ERROR_HEADERS,
    EXCEPTION,
    MESSAGE,
    OFFSET,
    PARTITION,
    REPLAYED_AS,
    REPLAYS,
    TOPIC,
    Headers,
    SourcePosition,
    source_position,
)
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, ITEMS, MAPPED, TOPICS

CHUNK = 500
ACKNOWLEDGED_SECONDS = 30.0
NAMES = tuple(name.removesuffix(DEAD_LETTER_SUFFIX) for name in TOPICS if name.endswith(DEAD_LETTER_SUFFIX))
"""What has dead letters, by its name without the prefix."""


class Letter(NamedTuple):
    """A dead letter, once, however often it was sent there."""

    source: SourcePosition
    key: bytes | None
    value: bytes | None
    headers: Headers
    """As the message had them."""
    reason: str
    message: str
    at_ms: int
    replays: int
    """How often it had been sent back before it failed this time."""
    cut_from: int | None
    """Bytes of the value before it was cut."""
    replayed_as: str | None
    """Where it stands now if it was sent back since."""

    @property
    def position(self) -> str:
        """As people name it."""
        return f"{self.source.partition}:{self.source.offset}"


def read_letters(kafka: KafkaSettings, name: str) -> list[Letter]:
    """All that stand on `<name>.dlq` now, in the order of their sources; what others wrote there is passed over.

    Raises:
        ValueError: there is no such topic.
    """
    if name not in NAMES:
        raise ValueError(f"{name} has no dead letters; {', '.join(NAMES)} have")
    letters: dict[SourcePosition, Letter] = {}
    marks: dict[SourcePosition, str] = {}
    with consumer(kafka) as client:
        for record in _records(client, kafka.topic(name + DEAD_LETTER_SUFFIX)):
            headers = {header: (value or b"").decode(errors="replace") for header, value in record.headers}
            try:
                source = source_position(record.headers)
            except ValueError:
                continue
            if REPLAYED_AS in headers:
                marks[source] = headers[REPLAYED_AS]
            else:
                letters.setdefault(source, _letter(record, source, headers))
    return [letters[source]._replace(replayed_as=marks.get(source)) for source in sorted(letters)]


def why_not(letter: Letter, name: str, *, sources: Iterable[str], max_replays: int) -> str | None:
    """What forbids to send a letter back, if anything does; `sources` are the topics that `name` speaks of."""
    if name == EXAMPLES:
        return "examples are made from events; the model learns from those again in a full retrain"
    if letter.replayed_as is not None:
        return f"sent back already, as {letter.replayed_as}"
    if letter.cut_from is not None:
        return f"only a part of its {letter.cut_from} bytes was kept"
    if letter.replays >= max_replays:
        return f"it failed again after {letter.replays} replays; mend it, or raise --max-replays"
    if letter.source.topic not in sources:
        return f"it says that it came from {letter.source.topic}, which is not read any more"
    return None


def superseded(kafka: KafkaSettings, letters: Iterable[Letter]) -> set[SourcePosition]:
    """Of letters of `items`, those whose key has a newer record: sent back, they would take its place."""
    newest: dict[tuple[int, bytes | None], int] = {}
    with consumer(kafka) as client:
        for record in _records(client, kafka.topic(ITEMS)):
            newest[record.partition, record.key] = record.offset
    return {
        letter.source
        for letter in letters
        if newest.get((letter.source.partition, letter.key), -1) > letter.source.offset
    }


def send_back(kafka: KafkaSettings, producer: KafkaProducer, name: str, letters: list[Letter]) -> Iterator[int]:
    """Sends letters to the partitions that they came from, raw, and marks them; yields how many after each chunk.

    Raises:
        KafkaError: the broker did not take one; what was yielded before is done.
    """
    marks = kafka.topic(name + DEAD_LETTER_SUFFIX)
    for start in range(0, len(letters), CHUNK):
        chunk = letters[start : start + CHUNK]
        sent = [
            producer.send(
                letter.source.topic,
                letter.value,
                key=letter.key,
                headers=[*letter.headers, (REPLAYS, str(letter.replays + 1).encode())],
                partition=letter.source.partition,
            )
            for letter in chunk
        ]
        places = [future.get(timeout=ACKNOWLEDGED_SECONDS) for future in sent]
        done = [
            producer.send(marks, None, key=letter.key, headers=_mark(letter.source, f"{at.partition}:{at.offset}"))
            for letter, at in zip(chunk, places, strict=True)
        ]
        for future in done:
            future.get(timeout=ACKNOWLEDGED_SECONDS)
        yield start + len(chunk)


def sources_of(kafka: KafkaSettings, name: str, mapped: Iterable[str]) -> set[str]:
    """The topics whose messages `<name>.dlq` holds; `mapped` are those that the mapping reads."""
    return set(mapped) if name == MAPPED else {kafka.topic(name)}


def _mark(source: SourcePosition, replayed_as: str) -> Headers:
    """It stands for the same source position as the letter, so that whoever counts positions counts it once."""
    texts: Mapping[str, object] = {TOPIC: source.topic, PARTITION: source.partition, OFFSET: source.offset}
    return [(header, str(text).encode()) for header, text in {**texts, REPLAYED_AS: replayed_as}.items()]


def _letter(record: Any, source: SourcePosition, headers: Mapping[str, str]) -> Letter:  # noqa: ANN401 - kafka-python
    ours = {*ERROR_HEADERS, REPLAYS, CUT_FROM}
    return Letter(
        source=source,
        key=record.key,
        value=record.value,
        headers=[(header, value) for header, value in record.headers if header not in ours],
        reason=headers.get(EXCEPTION, ""),
        message=headers.get(MESSAGE, ""),
        at_ms=record.timestamp,
        replays=_number(headers.get(REPLAYS)) or 0,
        cut_from=_number(headers.get(CUT_FROM)),
        replayed_as=None,
    )


def _number(text: str | None) -> int | None:
    """Anybody can write a header; what is no number says nothing."""
    return int(text) if text is not None and text.isdecimal() else None


def _records(client: KafkaConsumer, topic: str) -> Iterator[Any]:
    """Every record that stands on a topic at this moment."""
    partitions = client.partitions_for_topic(topic)
    if not partitions:
        raise ValueError(f"{topic} does not exist; make it with `sasrec-stream topics create`")
    tps = [TopicPartition(topic, partition) for partition in sorted(partitions)]
    client.assign(tps)
    client.seek_to_beginning(*tps)
    ends = client.end_offsets(tps)
    while any(client.position(tp) < ends[tp] for tp in tps):
        for records in client.poll(timeout_ms=1_000).values():
            yield from records
