"""A crash as data: whatever is killed whenever, the topics end as if nobody had been killed (I1, I9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stream.chunks import Chunk
from stream.dead_letters import Headers
from stream.debts import span_headers, spans_owed
from stream.examples import Example, encode_example
from stream.folding import SOURCES, Folder
from stream.intake import Batch, Intake
from stream.worker import halves
from tests.rows import KAFKA, Raw, Store, raw
from tests.strategies import Event
from tests.stream.test_sweeping import SETTINGS, as_read, crowds
from trainer.cut import fresh

TOPICS = [KAFKA.topic(name) for name in SOURCES]
STEPS = ("folded", "half the examples", "examples", "states", "finished", "committed")

Logs = dict[str, list[Raw]]


class Doom(NamedTuple):
    """A life ends at a step of its so many-th batch."""

    batches: int
    step: str


class Sent(NamedTuple):
    """An example as it stands on its topic."""

    value: bytes
    headers: Headers


class Message(NamedTuple):
    topic: str
    value: Chunk[Any]

    @property
    def tp(self) -> TP:
        return TP(self.topic, 0)


class CrashedError(Exception):
    """The process is gone; what was written stands."""


class World:
    """What survives a crash, topics, committed offsets and states, and the protocol that writes them."""

    def __init__(self, logs: Logs) -> None:
        self.logs = logs
        self.store = Store(SETTINGS)
        self.sent: list[Sent] = []
        self.examples: list[Example] = []
        self.committed = dict.fromkeys(TOPICS, 0)

    def learnt(self) -> list[Example]:
        """What a trainer learns that remembers one highest id per source partition."""
        return fresh(self.examples, {}).examples

    def live(self, chunks: Iterator[tuple[str, int]], doom: Doom | None, *, most: int | None = None) -> None:
        """One life of a worker, which fetches as `chunks` has it: the topic, and how many records of it at most.

        It handles at most so many at once.
        """
        fetched = dict(self.committed)
        owed = spans_owed(KAFKA, self.sent[-1] if self.sent else None, self.committed)
        intake = Intake(0, TOPICS, owed=owed, folded=self._folded())
        left = doom

        def has_more(tp: TP, _read: int | None) -> bool:
            return fetched[tp.topic] < len(self.logs[tp.topic])

        while any(has_more(TP(topic, 0), None) for topic in TOPICS):
            topic, count = next(chunks)
            records = self.logs[topic][fetched[topic] : fetched[topic] + count]
            if not records:
                continue
            intake.put(Message(topic, Chunk(records, fetched[topic])), finished=self.committed[topic])
            fetched[topic] += len(records)
            while batch := intake.take(has_more, most=most):
                left = left and left._replace(batches=left.batches - 1)
                self._handle(batch, left.step if left and left.batches < 0 else "")

    def _folded(self) -> dict[str, int]:
        applied = self.store.marks().applied
        return {KAFKA.topic(name): getattr(applied, name) for name in SOURCES}

    def _handle(self, batch: Batch, doom: str, *, is_whole: bool = True) -> None:
        """The protocol of `StreamWorker.handle`, carried through to the step at which it dies."""
        if is_whole and len(batch.records) > 3:
            for half in halves(batch):
                self._handle(half, doom, is_whole=False)
            self._commit(batch, doom)
            return
        folded = Folder(KAFKA, SETTINGS).fold(batch.records, self.store)
        die_at("folded", doom)
        headers = span_headers(batch.spans)
        if doom == "half the examples":
            self._send(folded.examples[: len(folded.examples) // 2], headers)
        die_at("half the examples", doom)
        self._send(folded.examples, headers)
        die_at("examples", doom)
        self.store.write(folded)
        die_at("states", doom)
        if is_whole:
            self._commit(batch, doom)

    def _send(self, examples: Sequence[Example], headers: Headers) -> None:
        self.examples += examples
        self.sent += [Sent(encode_example(example), headers) for example in examples]

    def _commit(self, batch: Batch, doom: str) -> None:
        for nth, message in enumerate(batch.ended):
            if nth:
                die_at("finished", doom)
            self.committed[message.topic] = message.value.next
        die_at("committed", doom)


def die_at(step: str, doom: str) -> None:
    if step == doom:
        raise CrashedError


def told(examples: Sequence[Example]) -> list[str]:
    return sorted(map(repr, examples))


@st.composite
def logs(draw: st.DrawFn) -> Logs:
    """Events of a crowd on three topics: many came in within one millisecond, and their stamps need not ascend."""
    events: list[Event] = draw(crowds())
    busy = draw(st.integers(1, 20))
    jitter = draw(st.sampled_from([0, 0, 3]))
    found: Logs = {topic: [] for topic in TOPICS}
    for nth, read in enumerate(as_read(events)):
        record = raw(read)
        stamp = read.arrival.at_ms - nth + nth // busy + draw(st.integers(-jitter, jitter))
        found[record.topic].append(record._replace(timestamp=stamp))
    return found


@st.composite
def fetches(draw: st.DrawFn) -> Iterator[tuple[str, int]]:
    """Topics in turns without end, in any order and in chunks of any size."""
    few = draw(st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(1, 9)), max_size=12))
    every = [(topic, draw(st.integers(1, 9))) for topic in draw(st.permutations(TOPICS))]

    def endless() -> Iterator[tuple[str, int]]:
        yield from few
        while True:
            yield from every

    return endless()


dooms = st.lists(st.builds(Doom, st.integers(0, 6), st.sampled_from(STEPS)), max_size=5)


@given(logs(), dooms, st.data())
def test_killed_at_any_steps_the_stream_ends_as_if_nobody_had_been_killed(
    logs: Logs, dooms: list[Doom], data: st.DataObject
) -> None:
    peace, disturbed = World(logs), World(logs)
    peace.live(data.draw(fetches()), None)

    for doom in dooms:
        try:
            disturbed.live(data.draw(fetches()), doom, most=data.draw(st.none() | st.integers(1, 9)))
        except CrashedError:
            continue
    disturbed.live(data.draw(fetches()), None)

    assert disturbed.store.rows == peace.store.rows
    assert told(disturbed.learnt()) == told(peace.learnt())
    assert told(peace.learnt()) == told(peace.examples), "nothing is told twice in peace"
