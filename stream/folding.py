"""A chunk of raw records folded into the states of its users: everything a chunk leads to, before anything is sent."""

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
    CLICKS: Source(Click, apply_click),
    IMPRESSIONS: Source(Impression, apply_impression),
    RECOMMENDATIONS: Source(Recommendation, apply_recommendation),
}
"""The input topics, by their names without the prefix."""


class FoldedChunk(NamedTuple):
    """What is to be sent and written, in the order of the records."""

    examples: list[Example]
    dead_letters: list[DeadLetter]
    states: Mapping[bytes, bytes]
    """By key, of every user whom the chunk changed."""
    outcomes: Counter[Outcome]
    reasons: Counter[Reason]


_Readable = tuple[bytes, Any, Arrival]
"""Key, event, arrival: a plain tuple, because every event makes one."""


class Folder(NamedTuple):
    """Folds chunks by these settings; where states are read and what time it is are arguments."""

    kafka: KafkaSettings
    stream: StreamSettings

    def fold(self, name: str, records: Sequence[StampedRecord], read: ReadStates, *, now_ms: int) -> FoldedChunk:
        """Folds records of one partition of the topic `name`; a user's state is read once and written once."""
        readable, dead_letters, reasons = self._decode(name, records, now_ms)
        before = _states_of([key for key, _, _ in readable], read)
        after = dict(before)
        examples: list[Example] = []
        outcomes: Counter[Outcome] = Counter()
        apply = SOURCES[name].apply
        for key, event, arrival in readable:
            folded = apply(after[key], event, arrival, self.stream)
            after[key] = folded.state
            examples += folded.examples
            outcomes[folded.outcome] += 1
        changed = {key: encode_state(state) for key, state in after.items() if state is not before[key]}
        return FoldedChunk(examples, dead_letters, changed, outcomes, reasons)

    def _decode(
        self, name: str, records: Sequence[StampedRecord], now_ms: int
    ) -> tuple[list[_Readable], list[DeadLetter], Counter[Reason]]:
        latest_ms = now_ms + self.stream.max_future_seconds * SECOND_MS
        kind = SOURCES[name].kind
        readable: list[_Readable] = []
        dead_letters: list[DeadLetter] = []
        reasons: Counter[Reason] = Counter()
        for record in records:
            try:
                event = decode_event(record, kind, latest_ms=latest_ms)
            except UnreadableError as error:
                dead_letters.append(dead_letter(record, error, max_bytes=self.kafka.max_message_bytes))
                reasons[error.reason] += 1
            else:
                assert record.key is not None, "decode_event compares the key with user_id"
                arrival = Arrival(name, record.partition, record.offset, record.timestamp)
                readable.append((record.key, event, arrival))
        return readable, dead_letters, reasons


def _states_of(keys: Sequence[bytes], read: ReadStates) -> dict[bytes, UserState]:
    once = list(dict.fromkeys(keys))
    return {key: UserState() if raw is None else decode_state(raw) for key, raw in zip(once, read(once), strict=True)}
