"""Learns again what lies between two checkpoints, micro-batch by micro-batch, and compares the bytes (I9).

1. The checkpoint before is resumed.
2. The boundaries that the checkpoint after recorded are read again from `examples`, each micro-batch exactly.
3. Each is learnt as it was: in the same order, and warily where it was.
4. What comes out is hashed file by file, as a checkpoint is.

On a CPU with the same settings, versions and kind of processor every hash is the recorded one.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from model.checkpoint import encoded, read_manifest
from model.store import Place
from stream.clients import consumer
from stream.examples import Example, decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES
from trainer.cut import Cut, fresh
from trainer.examples import partitions_of
from trainer.settings import TrainerSettings
from trainer.state import Resumed, documents_of, read_boundaries, read_cut, read_guard, resume, tensors_of

POLL_MS = 500


class Rerun(NamedTuple):
    """What came out, file by file."""

    micro_batches: int
    recorded: Mapping[str, str]
    """SHA-256 of every file of the checkpoint."""
    learnt_again: Mapping[str, str]

    @property
    def differing(self) -> list[str]:
        """Files that are not the same to the byte."""
        return sorted(name for name, digest in self.recorded.items() if self.learnt_again.get(name) != digest)


def rerun(kafka: KafkaSettings, settings: TrainerSettings, *, before: Place, after: Place) -> Rerun:
    """From the checkpoint `before`, through what `after` recorded.

    Raises:
        BrokenCheckpointError: one of the two cannot be read.
        ValueError: `after` does not follow on `before`, or its examples are no longer on the broker.
    """
    # 1.
    resumed, boundaries = resume(before, settings), read_boundaries(after)
    first = resumed.learner.guard.batches
    recorded = read_guard(after)
    if recorded.batches - first != len(boundaries):
        raise ValueError(f"{after} holds {len(boundaries)} micro-batches and does not follow on {before}")
    wary = {number - first for number in recorded.wary}
    cut = resumed.cut
    # 2.
    for number, (boundary, examples) in enumerate(micro_batches(kafka, resumed.cut, boundaries)):
        # 3.
        new = fresh(examples, cut.marks)
        cut = Cut(offsets=boundary, marks=new.marks)
        if new.examples:
            resumed.learner.learn(new.examples, mode="wary" if number in wary else "normal")
    # 4.
    cut = Cut(offsets=read_cut(after).offsets, marks=cut.marks)  # repeats read after the last micro-batch move offsets
    files = {name: file.sha256 for name, file in read_manifest(after).files.items()}
    return Rerun(len(boundaries), files, digests(Resumed(resumed.learner, cut), boundaries))


def digests(resumed: Resumed, boundaries: tuple[dict[int, int], ...]) -> dict[str, str]:
    """SHA-256 of the files that a checkpoint of this learner has."""
    contents = encoded(tensors_of(resumed.learner), documents_of(resumed.learner, resumed.cut, boundaries))
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def micro_batches(
    kafka: KafkaSettings, cut: Cut, boundaries: Sequence[Mapping[int, int]]
) -> Iterator[tuple[dict[int, int], list[Example]]]:
    """The examples up to each boundary, by partition and then in the order of the topic; repeats are still there.

    Raises:
        ValueError: the broker no longer has them.
    """
    with consumer(kafka) as reader:
        partitions = partitions_of(reader, kafka.topic(EXAMPLES))
        reader.assign(partitions)
        begins = reader.beginning_offsets(partitions)
        at = {partition.partition: cut.offsets.get(partition.partition, 0) for partition in partitions}
        for partition in partitions:
            if begins[partition] > at[partition.partition] and boundaries:
                raise ValueError(f"{partition.topic} no longer has what was learnt; raise kafka.retention_hours")
            reader.seek(partition, at[partition.partition])
        waiting: dict[int, deque[ConsumerRecord]] = {partition.partition: deque() for partition in partitions}
        for boundary in boundaries:
            _read_up_to(reader, boundary, waiting)
            examples: list[Example] = []
            for partition in sorted(waiting):
                queue = waiting[partition]
                while queue and queue[0].offset < boundary.get(partition, 0):
                    examples += _decoded(queue.popleft())
            yield dict(boundary), examples


def _read_up_to(
    reader: KafkaConsumer, boundary: Mapping[int, int], waiting: Mapping[int, deque[ConsumerRecord]]
) -> None:
    topic = next(iter(reader.assignment())).topic
    while any(reader.position(TopicPartition(topic, partition)) < end for partition, end in boundary.items()):
        for partition, records in reader.poll(timeout_ms=POLL_MS).items():
            waiting[partition.partition].extend(records)


def _decoded(record: ConsumerRecord) -> list[Example]:
    """None where it cannot be read: it went to the dead letters and changed nothing."""
    try:
        return [decode_example(record.value or b"")]
    except (msgspec.DecodeError, ValueError):
        return []
