"""The stream worker: carries batches of records through the protocol of `StreamWorker.handle`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from stream import metrics
from stream.batches import BatchProducer, Message
from stream.dead_letters import Headers
from stream.debts import span_headers
from stream.examples import encode_example
from stream.folding import FoldedBatch, Folder
from stream.intake import Batch
from stream.settings import KafkaSettings, StreamSettings
from stream.store import StateStore
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, SEQUENCES

Clock = Callable[[], int]


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class StreamWorker:
    """One per process. Batches are handled one after another, so no two ever change the same user at once."""

    def __init__(
        self,
        kafka: KafkaSettings,
        stream: StreamSettings,
        *,
        producer: BatchProducer,
        store: StateStore,
        clock: Clock = wall_clock_ms,
    ) -> None:
        self._kafka = kafka
        self._folder = Folder(kafka, stream)
        self._producer = producer
        self._store = store
        self._clock = clock

    async def handle(self, batch: Batch) -> None:
        """Carries a batch through to where its offsets may be committed, which is up to the caller.

        1. Its records are decoded and folded into the states of their users, which are read from the store. What a
           state has folded in before changes nothing and teaches nothing.
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
            # 1.
            folded = self._fold(batch)
            # 2.
            await self._write_dead_letters(batch.partition, folded)
            await self._write_examples(batch.partition, folded, span_headers(batch.spans))
            # 3.
            offset = await self._write_states(batch.partition, folded)
            # 4.
            self._store_states(batch.partition, folded, offset)
        # 5.
        _count(batch, folded)

    def _fold(self, batch: Batch) -> FoldedBatch:
        def read(keys: list[bytes]) -> Any:  # noqa: ANN401 - rows as the store gives them
            return self._store.read(batch.partition, keys)

        return self._folder.fold(batch.records, read, now_ms=self._clock())

    async def _write_dead_letters(self, partition: int, folded: FoldedBatch) -> None:
        for topic, letters in folded.dead_letters.items():
            messages = [Message(letter.key, letter.value, letter.headers) for letter in letters]
            await self._producer.write(topic + DEAD_LETTER_SUFFIX, partition, messages)

    async def _write_examples(self, partition: int, folded: FoldedBatch, headers: Headers) -> None:
        messages = [Message(example.user_id.encode(), encode_example(example), headers) for example in folded.examples]
        await self._producer.write(self._kafka.topic(EXAMPLES), partition, messages)

    async def _write_states(self, partition: int, folded: FoldedBatch) -> int | None:
        rows = [Message(key, row) for key, row in folded.states.items()]
        return await self._producer.write(self._kafka.topic(SEQUENCES), partition, rows)

    def _store_states(self, partition: int, folded: FoldedBatch, offset: int | None) -> None:
        if folded.states:
            self._store.write(partition, folded.states, changelog_offset=offset)


def _count(batch: Batch, folded: FoldedBatch) -> None:
    metrics.CHUNK_RECORDS.observe(len(batch.records))
    for (name, outcome), count in folded.outcomes.items():
        metrics.EVENTS.labels(name, outcome).inc(count)
    for (name, reason), count in folded.reasons.items():
        metrics.EVENTS.labels(name, "dead").inc(count)
        metrics.DEAD_LETTERS.labels(name, reason).inc(count)
    for kind, count in Counter(type(example) for example in folded.examples).items():
        metrics.EXAMPLES.labels(kind.__struct_config__.tag).inc(count)
