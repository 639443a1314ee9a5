"""What the scoring worker writes: slates and dead letters, and how far each source is answered once they stand.

Everything goes to the partition of the number it came from, so that the slates of a user stand where the stream worker
expects them, and one offset of `recommendations` says where a successor must look for answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deploy.scoring.batching import Source, Work
from deploy.scoring.inputs import Done, Rebalanced
from stream.cloud_events import Headers
from stream.dead_letters import DeadLetter, UnreadableError, dead_letter
from stream.events import Recommendation
from stream.loop_clients import producer
from stream.metrics import DEAD_LETTERS
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, RECOMMENDATIONS

PATIENCE_SECONDS = 1.0


class _Answer(NamedTuple):
    offset: int
    """Of what was answered, in its source."""
    recommended: int
    """Of the slate, on `recommendations`."""


@dataclasses.dataclass(slots=True)
class _Sent:
    work: Work
    slate: Recommendation
    future: asyncio.Future[Any]
    acknowledged_at_ms: int = 0

    def stamp(self, _written: object) -> None:
        """Called in the moment of the acknowledgement."""
        self.acknowledged_at_ms = time.time_ns() // 1_000_000


class Acknowledged(NamedTuple):
    """A slate that stands on `recommendations`, and since when."""

    slate: Recommendation
    at_ms: int


class Answers:
    """Sends slates, knows which of them stand, and so what may be committed; make it on a running event loop."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer = producer(kafka)
        self._sent: deque[_Sent] = deque()
        self._letters: deque[tuple[Any, DeadLetter]] = deque()
        # The thread that follows `items` appends, too.
        self._refused: deque[asyncio.Future[Any]] = deque()
        self._answers: dict[Source, list[_Answer]] = {}
        self._ends: dict[int, int] = {}

    @property
    def unacknowledged(self) -> int:
        """Slates on their way."""
        return len(self._sent)

    async def start(self) -> None:
        """Connects."""
        await self._producer.start()

    def begin(self, moved: Rebalanced) -> None:
        """Other partitions are ours from now on; until all that stood there is answered, so may it be by another."""
        for source in moved.lost:
            self._answers.pop(source, None)
        for source, (_, recommended) in moved.done.items():
            last_by_another = _Answer(moved.ends[source] - 1, recommended)
            self._answers.setdefault(source, []).append(last_by_another)
            self._ends[source.partition] = max(recommended, self._ends.get(source.partition, recommended))

    async def send(self, work: Work, slate: Recommendation, raw: bytes, headers: Headers) -> None:
        """Hands a slate to the producer, which sends it as soon as the loop is free."""
        future = await self._producer.send(
            self._kafka.topic(RECOMMENDATIONS),
            raw,
            key=work.user_id.encode(),
            headers=headers,
            partition=work.source.partition,
        )
        sent = _Sent(work, slate, future)
        future.add_done_callback(sent.stamp)
        self._sent.append(sent)

    def refuse(self, record: Any, error: UnreadableError) -> None:  # noqa: ANN401 - Kafka's clients ship no types
        """Takes a record that cannot be read; `send_refused` sends it to the dead letters."""
        topic = record.topic.removeprefix(self._kafka.topic_prefix)
        DEAD_LETTERS.labels(topic=topic, reason=error.reason).inc()
        self._letters.append((record, dead_letter(record, error, max_bytes=self._kafka.max_message_bytes)))

    async def send_refused(self) -> None:
        """Before it stands among the dead letters, nothing is committed."""
        while self._letters:
            record, letter = self._letters[0]
            future = await self._producer.send(
                record.topic + DEAD_LETTER_SUFFIX,
                letter.value,
                key=letter.key,
                headers=letter.headers,
                partition=record.partition,
            )
            self._refused.append(future)
            self._letters.popleft()

    async def flush(self) -> None:
        """Waits until the broker has everything, but no longer than it is patient."""
        await self.send_refused()
        on_their_way = [*self._refused, *(sent.future for sent in self._sent)]
        if on_their_way:
            await asyncio.wait(on_their_way, timeout=PATIENCE_SECONDS)

    def acknowledged(self) -> list[Acknowledged]:
        """The slates that stand since the last time, in the order of sending.

        Raises:
            KafkaError: something could not be written; nothing of it may be committed.
        """
        found = []
        while self._refused and self._refused[0].done():
            self._refused.popleft().result()
        while self._sent and self._sent[0].future.done():
            sent = self._sent.popleft()
            written = sent.future.result()
            self._ends[written.partition] = max(self._ends.get(written.partition, 0), written.offset + 1)
            if sent.work.source in self._answers:
                self._answers[sent.work.source].append(_Answer(sent.work.offset, written.offset))
            found.append(Acknowledged(sent.slate, sent.acknowledged_at_ms))
        return found

    def done(self, waiting: Mapping[Source, int], read_to: Callable[[Source], int]) -> dict[Source, Done]:
        """What may be committed, given the first offset that waits in a source and the first that was not read.

        What is on its way waits, too. Answers to what stands behind the committed offset came early: a newer click had
        taken an older one's place. Those on their way will stand behind all that stand there now.
        """
        if self._letters or self._refused:
            return {}
        first = dict(waiting)
        for sent in self._sent:
            first[sent.work.source] = min(sent.work.offset, first.get(sent.work.source, sent.work.offset))
        return {source: self._done(source, first.get(source, read_to(source))) for source in self._answers}

    async def close(self) -> None:
        """Ends the producer; what it still has is sent, while the broker takes it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._producer.stop(), PATIENCE_SECONDS)

    def _done(self, source: Source, offset: int) -> Done:
        early = [answer for answer in self._answers[source] if answer.offset >= offset]
        self._answers[source] = early
        return Done(offset, min((answer.recommended for answer in early), default=self._ends[source.partition]))
