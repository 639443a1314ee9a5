"""The stream worker: carries batches of records through the protocol of `StreamWorker.handle`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from stream import metrics
from stream.batches import BatchProducer, Message, PartitionWriter
from stream.dead_letters import Headers
from stream.debts import span_headers
from stream.examples import encode_example
from stream.folding import SOURCES, FoldedBatch, Folder
from stream.intake import Batch, Span
from stream.settings import KafkaSettings, StreamSettings
from stream.store import StateStore
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, SEQUENCES

RECORD_BYTES = 32
"""What a record adds to its key and value in a record batch, at most."""


class StreamWorker:
    """One per process. Batches of a partition are handled one after another, so no two change a user at once."""

    def __init__(
        self,
        kafka: KafkaSettings,
        stream: StreamSettings,
        *,
        producer: BatchProducer,
        store: StateStore,
    ) -> None:
        self._kafka = kafka
        self._folder = Folder(kafka, stream)
        self._producer = producer
        self._store = store

    async def handle(self, batch: Batch) -> None:
        """Carries a batch through to where its offsets may be committed, which is up to the caller.

        1. Its records are decoded and folded into the states of their users, which are read from the store. What a
           state has folded in before changes nothing and teaches nothing. Where the states would not fit into one
           record batch, which Kafka appends as a whole or not at all, the records are carried through by halves.
        2. The examples that follow are written, in the order of their events, and acknowledged; dead letters as well.
        3. The changed states are written to `sequences` and acknowledged.
        4. The store gets the states and, with them, how far `sequences` has been written.
        5. The offsets may be committed.

        Killed before 3 is done, the same records are folded again into the same states (`read_debts`), and the same
        examples are sent again under the same ids, which the trainer drops. Killed after it, recovery brings the states
        from `sequences`, they skip the records, and nothing is sent. Dead letters may stand twice, with one source
        position.
        """
        with metrics.CHUNK_SECONDS.time():
            # From before the states are read: one that is taken from us meanwhile refuses to write what follows.
            writer = self._producer.partition(batch.partition)
            # 1.
            folded = self._fold(batch)
            if not self._fits(folded) and len(batch.records) > 1:
                for half in halves(batch):
                    await self.handle(half)
                return
            # 2.
            await self._write_dead_letters(writer, folded)
            await self._write_examples(writer, folded, span_headers(batch.spans))
            # 3.
            offset = await self._write_states(writer, folded)
            # 4.
            self._store_states(batch.partition, folded, offset)
        # 5.
        _count(batch, folded)

    def writer(self, partition: int) -> PartitionWriter:
        """Who writes to a partition number."""
        return self._producer.partition(partition)

    def folded(self, partition: int) -> dict[str, int]:
        """By the full names of the input topics, the highest offset that the states have folded in; -1 for none."""
        applied = self._store.partition(partition).marks().applied
        return {self._kafka.topic(name): getattr(applied, name) for name in SOURCES}

    def _fold(self, batch: Batch) -> FoldedBatch:
        return self._folder.fold(batch.records, self._store.partition(batch.partition))

    def _fits(self, folded: FoldedBatch) -> bool:
        size = sum(len(key) + len(row or b"") + RECORD_BYTES for key, row in folded.states.items())
        return size <= self._kafka.max_batch_bytes

    async def _write_dead_letters(self, writer: PartitionWriter, folded: FoldedBatch) -> None:
        for topic, letters in folded.dead_letters.items():
            messages = [Message(letter.key, letter.value, letter.headers) for letter in letters]
            await writer.write(topic + DEAD_LETTER_SUFFIX, messages)

    async def _write_examples(self, writer: PartitionWriter, folded: FoldedBatch, headers: Headers) -> None:
        messages = [Message(example.user_id.encode(), encode_example(example), headers) for example in folded.examples]
        await writer.write(self._kafka.topic(EXAMPLES), messages)

    async def _write_states(self, writer: PartitionWriter, folded: FoldedBatch) -> int | None:
        rows = [Message(key, row) for key, row in folded.states.items()]
        return await writer.write(self._kafka.topic(SEQUENCES), rows)

    def _store_states(self, partition: int, folded: FoldedBatch, offset: int | None) -> None:
        if folded.states:
            rows = self._store.partition(partition)
            rows.write(folded.states, folded.marks, folded.deadlines, changelog_offset=offset)


def halves(batch: Batch) -> Iterator[Batch]:
    """The first half of the records, and the rest: merged from their spans they come out in the same order again."""
    middle = len(batch.records) // 2
    for records in (batch.records[:middle], batch.records[middle:]):
        yield batch._replace(records=records, spans=_spans(records))


def _spans(records: Sequence[Any]) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for record in records:
        first = spans[record.topic].first if record.topic in spans else record.offset
        spans[record.topic] = Span(first, record.offset + 1)
    return spans


def _count(batch: Batch, folded: FoldedBatch) -> None:
    metrics.CHUNK_RECORDS.observe(len(batch.records))
    for (name, outcome), count in folded.outcomes.items():
        metrics.EVENTS.labels(name, outcome).inc(count)
    for (name, reason), count in folded.reasons.items():
        metrics.EVENTS.labels(name, "dead").inc(count)
        metrics.DEAD_LETTERS.labels(name, reason).inc(count)
    metrics.FORGOTTEN.inc(sum(row is None for row in folded.states.values()))
    for kind, count in Counter(type(example) for example in folded.examples).items():
        metrics.EXAMPLES.labels(kind.__struct_config__.tag).inc(count)
