"""Raw records folded into the states of their users: everything they lead to, before anything is sent.

Pure: what it does depends on the records and on what the store held before them, on no clock and on nothing remembered.
So a batch that a crash interrupted leads to the same again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from stream.bounding import Sizes, bounded
from stream.dead_letters import DeadLetter, RawRecord, Reason, UnreadableError, dead_letter
from stream.deadlines import DeadlineChanges, changed_deadlines
from stream.decoding import decode_event
from stream.draft import Arrival
from stream.events import LATEST_MS, Click, Impression, Recommendation
from stream.examples import Example
from stream.join import Outcome, apply_click, apply_impression, apply_recommendation
from stream.marks import EventClock, Marks, furthest, is_behind
from stream.sequences import SECOND_MS, Applied, UserState, decode_state, encode_state
from stream.settings import KafkaSettings, StreamSettings
from stream.sweeping import ENDED_PER_RECORD, DueSoon, States, Sweep
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS


class Rows(Protocol):
    """What the store holds of a partition."""

    def marks(self) -> Marks:
        """What is known of the partition as a whole."""

    def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """The rows of these users, None where there is none."""

    def due(self, before_ms: int, *, most: int) -> DueSoon:
        """The earliest deadlines, no more than `most` of them, of those before a time."""


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
    states: Mapping[bytes, bytes | None]
    """By key, of every user whom the records changed; None for those forgotten."""
    outcomes: Counter[tuple[str, Outcome]]
    """By topic without the prefix."""
    reasons: Counter[tuple[str, Reason]]
    marks: Marks
    """What is known of the partition after the batch."""
    deadlines: DeadlineChanges
    """What changes of the store's deadlines."""


_Readable = tuple[bytes, Any, Arrival, int]
"""Key, event, arrival and bytes of the record: a plain tuple, because every event makes one."""
_NEW = UserState()


class Folder:
    """Folds records by these settings; where states are read is an argument."""

    def __init__(self, kafka: KafkaSettings, stream: StreamSettings) -> None:
        self._kafka = kafka
        self._stream = stream
        self._names = {kafka.topic(name): name for name in SOURCES}

    def fold(self, records: Sequence[StampedRecord], rows: Rows) -> FoldedBatch:
        """Folds records of one partition number in their order; a user's state is read once and written once."""
        marks = rows.marks()
        folded = FoldedBatch([], {}, {}, Counter(), Counter(), marks, DeadlineChanges((), ()))
        readable = self._decode(records, folded)
        horizon_ms = _horizon_ms(readable, marks)
        soon = self._due_soon(rows, marks, horizon_ms, len(readable))
        batch = _Batch(rows, [key for key, _, _, _ in readable], [key for _, key in soon.entries], self._stream)
        clock = EventClock(marks)
        sweep = Sweep(clock, soon, self._stream, horizon_ms=horizon_ms)
        for one in readable:
            self._fold_one(batch, sweep, one, folded)
        deadlines = changed_deadlines(batch.before, batch.states, sweep.visited, self._stream)
        next_due_ms = min(soon.rest_ms, sweep.earliest_ms(), deadlines.earliest_ms)
        applied = _applied_through(readable, marks.applied)
        return folded._replace(
            states=batch.changed(),
            marks=Marks(clock.newest, clock.second, applied, next_due_ms),
            deadlines=deadlines,
        )

    def _fold_one(self, batch: _Batch, sweep: Sweep, one: _Readable, folded: FoldedBatch) -> None:
        key, event, arrival, event_bytes = one
        if is_behind(folded.marks.applied, arrival.source, arrival.offset):
            # The user's state says so as well, unless the user has been forgotten since.
            folded.outcomes[arrival.source, "repeated"] += 1
            return
        applied = SOURCES[arrival.source].apply(batch.states[key] or _NEW, event, arrival, self._stream)
        state, ordinal = applied.state, len(applied.examples)
        folded.outcomes[arrival.source, applied.outcome] += 1
        folded.examples.extend(applied.examples)
        if batch.sizes.may_exceed(key, state, event_bytes=event_bytes):
            within = bounded(state, event.user_id, arrival, self._stream, ordinal=ordinal)
            state, ordinal = within.state, ordinal + len(within.examples)
            folded.examples.extend(within.examples)
            batch.sizes.met(key, state, row_bytes=within.row_bytes)
        batch.states[key] = state
        if sweep.note(key, state):
            folded.examples.extend(sweep.end_overdue(batch.states, batch.read, arrival, by=key, ordinal=ordinal))

    def _due_soon(self, rows: Rows, marks: Marks, horizon_ms: int, records: int) -> DueSoon:
        """Deadlines that may pass. A record may put as many of them out of date as it changes users: one."""
        if horizon_ms <= marks.next_due_ms:
            return DueSoon([], marks.next_due_ms)
        return rows.due(horizon_ms, most=records * (ENDED_PER_RECORD + 1))

    def _decode(self, records: Sequence[StampedRecord], folded: FoldedBatch) -> list[_Readable]:
        """The events in the records; what is none goes to the dead letters of `folded`."""
        skew_ms = self._stream.max_future_seconds * SECOND_MS
        readable: list[_Readable] = []
        for record in records:
            name = self._names[record.topic]
            try:
                event = decode_event(record, SOURCES[name].kind, latest_ms=_arrived_ms(record) + skew_ms)
            except UnreadableError as error:
                letter = dead_letter(record, error, max_bytes=self._kafka.max_message_bytes)
                folded.dead_letters.setdefault(record.topic, []).append(letter)
                folded.reasons[name, error.reason] += 1
            else:
                assert record.key is not None, "decode_event compares the key with user_id"
                assert record.value is not None, "and refuses a null value"
                arrival = Arrival(name, record.partition, record.offset, record.timestamp)
                readable.append((record.key, event, arrival, len(record.value)))
        return readable


class _Batch:
    """The users of a batch, and those who may fall due within it."""

    def __init__(self, rows: Rows, keys: list[bytes], due: list[bytes], settings: StreamSettings) -> None:
        changed = dict.fromkeys(keys)
        once, others = list(changed), [key for key in dict.fromkeys(due) if key not in changed]
        found = rows.read(once + others)
        self.before: States = {
            key: None if row is None else decode_state(row) for key, row in zip(once, found[: len(once)], strict=True)
        }
        self.states: States = dict(self.before)
        self.sizes = Sizes(settings)
        for key, row in zip(once, found[: len(once)], strict=True):
            self.sizes.met(key, self.before[key], row_bytes=len(row or b""))
        self._others = dict(zip(others, found[len(once) :], strict=True))

    def read(self, key: bytes) -> UserState | None:
        """The state of a user who has had no event in the batch."""
        row = self._others.get(key)
        self.before[key] = None if row is None else decode_state(row)
        self.states[key] = self.before[key]
        return self.before[key]

    def changed(self) -> dict[bytes, bytes | None]:
        """What is to be written."""
        return {
            key: None if state is None else encode_state(state)
            for key, state in self.states.items()
            if state is not self.before[key]
        }


def _horizon_ms(readable: Sequence[_Readable], marks: Marks) -> int:
    """The event time that the partition will have reached when all of these are folded, or a later one."""
    clock = EventClock(marks)
    for key, event, arrival, _ in readable:
        if arrival.source != RECOMMENDATIONS and event.timestamp_ms > clock.now_ms:
            clock.see(key, event.timestamp_ms)
    return clock.now_ms


def _applied_through(readable: Sequence[_Readable], before: Applied) -> Applied:
    last = {arrival.source: arrival.offset for _, _, arrival, _ in readable}
    return furthest(before, Applied(**last))


def _arrived_ms(record: StampedRecord) -> int:
    """Kafka's timestamp, which a replay brings again, unlike the clock on the wall; brokers refuse one from the future.

    The oldest clients send none: then nothing can be said about the future.
    """
    return record.timestamp if record.timestamp >= 0 else LATEST_MS
