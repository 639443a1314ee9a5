"""The stream worker: takes chunks from Faust's agent and carries each through the protocol of `StreamWorker.handle`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from faust.types import TP

from stream import metrics
from stream.batches import BatchProducer, Message
from stream.chunks import Chunk
from stream.examples import encode_example
from stream.folding import SOURCES, FoldedChunk, Folder
from stream.settings import KafkaSettings, StreamSettings
from stream.store import StateStore
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, SEQUENCES

Clock = Callable[[], int]


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class StreamWorker:
    """One per process. Chunks are handled one after another, so no two ever change the same user at once."""

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
        self._names = {kafka.topic(name): name for name in SOURCES}

    async def handle(self, tp: TP, chunk: Chunk[Any]) -> None:
        """Carries a chunk through to where it may be committed; whoever calls then acknowledges it.

        1. Its records are decoded and folded into the states of their users, which are read from the store. What a
           state has folded in before changes nothing and teaches nothing.
        2. The examples that follow are written, in the order of their events, and acknowledged; dead letters as well.
        3. The changed states are written to `sequences` and acknowledged.
        4. The store gets the states and, with them, how far `sequences` has been written.
        5. The chunk is finished: its offset may be committed.

        Killed before 3 is done, the same records are folded again into the same states, and the same examples are sent
        again under the same ids, which the trainer drops. Killed after it, recovery brings the states from
        `sequences`, they skip the records, and nothing is sent. Dead letters may stand twice, with one source
        position.
        """
        with metrics.CHUNK_SECONDS.time():
            # 1.
            name = self._names[tp.topic]
            folded = self._fold(tp, chunk)
            # 2.
            await self._write_dead_letters(tp, folded)
            await self._write_examples(tp.partition, folded)
            # 3.
            offset = await self._write_states(tp.partition, folded)
            # 4.
            self._store_states(tp.partition, folded, offset)
            # 5.
            chunk.finished = True
        self._count(name, chunk, folded)

    def _fold(self, tp: TP, chunk: Chunk[Any]) -> FoldedChunk:
        def read(keys: list[bytes]) -> Any:  # noqa: ANN401 - rows as the store gives them
            return self._store.read(tp.partition, keys)

        return self._folder.fold(self._names[tp.topic], chunk.records, read, now_ms=self._clock())

    async def _write_dead_letters(self, tp: TP, folded: FoldedChunk) -> None:
        letters = [Message(letter.key, letter.value, letter.headers) for letter in folded.dead_letters]
        await self._producer.write(tp.topic + DEAD_LETTER_SUFFIX, tp.partition, letters)

    async def _write_examples(self, partition: int, folded: FoldedChunk) -> None:
        examples = [Message(example.user_id.encode(), encode_example(example)) for example in folded.examples]
        await self._producer.write(self._kafka.topic(EXAMPLES), partition, examples)

    async def _write_states(self, partition: int, folded: FoldedChunk) -> int | None:
        rows = [Message(key, row) for key, row in folded.states.items()]
        return await self._producer.write(self._kafka.topic(SEQUENCES), partition, rows)

    def _store_states(self, partition: int, folded: FoldedChunk, offset: int | None) -> None:
        if folded.states:
            self._store.write(partition, folded.states, changelog_offset=offset)

    def _count(self, name: str, chunk: Chunk[Any], folded: FoldedChunk) -> None:
        metrics.CHUNK_RECORDS.observe(len(chunk.records))
        for outcome, count in folded.outcomes.items():
            metrics.EVENTS.labels(name, outcome).inc(count)
        for reason, count in folded.reasons.items():
            metrics.EVENTS.labels(name, "dead").inc(count)
            metrics.DEAD_LETTERS.labels(name, reason).inc(count)
        for kind, count in Counter(type(example) for example in folded.examples).items():
            metrics.EXAMPLES.labels(kind.__struct_config__.tag).inc(count)
