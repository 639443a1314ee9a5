"""What the scoring worker writes: slates and dead letters, and how far each source is answered once they stand.

Everything goes to the partition of the number it came from, so that the slates of a user stand where the stream worker
expects them, and one offset of `recommendations` says where a successor must look for answers.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deploy.scoring.batching import Source, Work
from deploy.scoring.inputs import Done, Rebalanced
from stream.clients import producer
from stream.cloud_events import Headers
from stream.dead_letters import UnreadableError, dead_letter
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
    future: Any
    acknowledged_at_ms: int = 0

    def stamp(self, _written: object) -> None:
        """Called by the producer's thread in the moment of the acknowledgement."""
        self.acknowledged_at_ms = time.time_ns() // 1_000_000


class Answers:
    """Sends slates, waits for their acknowledgement, and knows what may be committed."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer = producer(kafka, linger_ms=0)
        self._sent: list[_Sent] = []
        self._refused: deque[Any] = deque()
        # The thread that follows `items` appends, too.
        self._answers: dict[Source, list[_Answer]] = {}
        self._ends: dict[int, int] = {}

    def begin(self, moved: Rebalanced) -> None:
        """Other partitions are ours from now on; until all that stood there is answered, so may it be by another."""
        for source in moved.lost:
            self._answers.pop(source, None)
        for source, (_, recommended) in moved.done.items():
            last_by_another = _Answer(moved.ends[source] - 1, recommended)
            self._answers.setdefault(source, []).append(last_by_another)
            self._ends[source.partition] = max(recommended, self._ends.get(source.partition, recommended))

    def send(self, work: Work, slate: bytes, headers: Headers) -> None:
        """Hands a slate to the producer, whose own thread sends it."""
        future = self._producer.send(
            self._kafka.topic(RECOMMENDATIONS),
            slate,
            key=work.user_id.encode(),
            headers=headers,
            partition=work.source.partition,
        )
        sent = _Sent(work, future)
        future.add_callback(sent.stamp)
        self._sent.append(sent)

    def refuse(self, record: Any, error: UnreadableError) -> None:  # noqa: ANN401 - kafka-python ships no types
        """Sends a record that cannot be read to the dead letters."""
        topic = record.topic.removeprefix(self._kafka.topic_prefix)
        DEAD_LETTERS.labels(topic=topic, reason=error.reason).inc()
        letter = dead_letter(record, error, max_bytes=self._kafka.max_message_bytes)
        future = self._producer.send(
            record.topic + DEAD_LETTER_SUFFIX,
            letter.value,
            key=letter.key,
            headers=letter.headers,
            partition=record.partition,
        )
        self._refused.append(future)

    def acknowledged(self) -> list[int]:
        """Waits until the broker has everything sent so far; when it had each slate, in the order of sending.

        Raises:
            KafkaTimeoutError: it does not answer just now; ask again.
            KafkaError: something could not be written; nothing of it may be committed.
        """
        self._producer.flush(timeout=PATIENCE_SECONDS)
        while self._refused:
            self._refused.popleft().get(timeout=PATIENCE_SECONDS)
        for sent in self._sent:
            written = sent.future.get(timeout=0)
            self._ends[written.partition] = max(self._ends.get(written.partition, 0), written.offset + 1)
            if sent.work.source in self._answers:
                self._answers[sent.work.source].append(_Answer(sent.work.offset, written.offset))
        times_ms = [sent.acknowledged_at_ms for sent in self._sent]
        self._sent = []
        return times_ms

    def done(self, waiting: Mapping[Source, int], read_to: Callable[[Source], int]) -> dict[Source, Done]:
        """What may be committed, given the first offset that waits in a source and the first that was not read.

        Call after `acknowledged`. Answers to what stands behind the committed offset came early: a newer click had
        taken an older one's place.
        """
        return {source: self._done(source, waiting.get(source, read_to(source))) for source in self._answers}

    def close(self) -> None:
        """Ends the producer's thread."""
        self._producer.close(timeout=PATIENCE_SECONDS)

    def _done(self, source: Source, offset: int) -> Done:
        early = [answer for answer in self._answers[source] if answer.offset >= offset]
        self._answers[source] = early
        return Done(offset, min((answer.recommended for answer in early), default=self._ends[source.partition]))
