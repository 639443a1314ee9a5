"""Raw records folded into the states of their users: everything they lead to, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from stream.dead_letters import DeadLetter, RawRecord, Reason, UnreadableError, dead_letter
from stream.decoding import decode_event
from stream.draft import Arrival
from stream.events import Click, Impression, Recommendation
from stream.examples import Example
from stream.join import Outcome, apply_click, apply_impression, apply_recommendation
from stream.sequences import SECOND_MS, UserState, decode_state, encode_state
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS

ReadStates = Callable[[list[bytes]], Sequence[bytes | None]]


class StampedRecord(RawRecord, Protocol):
    """A raw record with Kafka's timestamp."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""


class Source(NamedTuple):
    """How an input topic's records become events, and how these are folded."""

    kind: type[Any]
    apply: Callable[..., Any]


SOURCES = {
    RECOMMENDATIONS: Source(Recommendation, apply_recommendation),
    IMPRESSIONS: Source(Impression, apply_impression),
    CLICKS: Source(Click, apply_click),
}
"""The input topics, by their names without the prefix. In this order those of one millisecond are folded in."""


class FoldedBatch(NamedTuple):
    """What is to be sent and written, in the order of the records."""

    examples: list[Example]
    dead_letters: dict[str, list[DeadLetter]]
    """By the full name of the topic they came from."""
    states: Mapping[bytes, bytes]
    """By key, of every user whom the records changed."""
    outcomes: Counter[tuple[str, Outcome]]
    """By topic without the prefix."""
    reasons: Counter[tuple[str, Reason]]


_Readable = tuple[bytes, Any, Arrival]
"""Key, event, arrival: a plain tuple, because every event makes one."""


class Folder:
    """Folds records by these settings; where states are read and what time it is are arguments."""

    def __init__(self, kafka: KafkaSettings, stream: StreamSettings) -> None:
        self._kafka = kafka
        self._stream = stream
        self._names = {kafka.topic(name): name for name in SOURCES}

    def fold(self, records: Sequence[StampedRecord], read: ReadStates, *, now_ms: int) -> FoldedBatch:
        """Folds records of one partition number in their order; a user's state is read once and written once."""
        folded = FoldedBatch([], {}, {}, Counter(), Counter())
        readable = self._decode(records, now_ms, folded)
        before = _states_of([key for key, _, _ in readable], read)
        after = dict(before)
        for key, event, arrival in readable:
            applied = SOURCES[arrival.source].apply(after[key], event, arrival, self._stream)
            after[key] = applied.state
            folded.examples.extend(applied.examples)
            folded.outcomes[arrival.source, applied.outcome] += 1
        changed = {key: encode_state(state) for key, state in after.items() if state is not before[key]}
        return folded._replace(states=changed)

    def _decode(self, records: Sequence[StampedRecord], now_ms: int, folded: FoldedBatch) -> list[_Readable]:
        """The events in the records; what is none goes to the dead letters of `folded`."""
        latest_ms = now_ms + self._stream.max_future_seconds * SECOND_MS
        readable: list[_Readable] = []
        for record in records:
            name = self._names[record.topic]
            try:
                event = decode_event(record, SOURCES[name].kind, latest_ms=latest_ms)
            except UnreadableError as error:
                letter = dead_letter(record, error, max_bytes=self._kafka.max_message_bytes)
                folded.dead_letters.setdefault(record.topic, []).append(letter)
                folded.reasons[name, error.reason] += 1
            else:
                assert record.key is not None, "decode_event compares the key with user_id"
                readable.append((record.key, event, Arrival(name, record.partition, record.offset, record.timestamp)))
        return readable


def _states_of(keys: Sequence[bytes], read: ReadStates) -> dict[bytes, UserState]:
    once = list(dict.fromkeys(keys))
    return {key: UserState() if raw is None else decode_state(raw) for key, raw in zip(once, read(once), strict=True)}
