"""The exact cut of the stream that a model stands for: it has learnt every example before it, none after, each once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from stream.examples import Example, ExampleId

Mark = tuple[int, int]
"""Offset and ordinal of an example's id."""


class Cut(msgspec.Struct, frozen=True):
    """Reading resumes *at* `offsets`; what it then meets again up to `marks` is a repeat and changes nothing."""

    offsets: dict[int, int] = {}
    """Per partition of `examples`, the next offset to read; a partition that is not named is read from its start."""
    marks: dict[str, dict[int, Mark]] = {}
    """Per source topic and partition, the highest id that was learnt."""

    def passed(self, identity: ExampleId) -> bool:
        """Whether the example of this id lies before the cut."""
        mark = self.marks.get(identity.source, {}).get(identity.partition)
        return mark is not None and (identity.offset, identity.ordinal) <= mark


class Fresh(NamedTuple):
    """What of some examples is new, and the marks once it is learnt."""

    examples: list[Example]
    marks: dict[str, dict[int, Mark]]


def fresh(examples: Iterable[Example], marks: dict[str, dict[int, Mark]]) -> Fresh:
    """Drops every repeat, also those within `examples`. Ids of one source partition come in order (I1)."""
    after = {source: dict(partitions) for source, partitions in marks.items()}
    kept = []
    for example in examples:
        identity = example.id
        partitions = after.setdefault(identity.source, {})
        mark = partitions.get(identity.partition)
        if mark is None or (identity.offset, identity.ordinal) > mark:
            partitions[identity.partition] = (identity.offset, identity.ordinal)
            kept.append(example)
    return Fresh(kept, after)


def later(left: Cut, right: Cut) -> Cut:
    """Past both: read from the earlier offsets, and count as passed what either has learnt."""
    partitions = left.offsets.keys() & right.offsets.keys()
    marks = {source: dict(left.marks.get(source, {})) for source in left.marks.keys() | right.marks.keys()}
    for source, of_source in right.marks.items():
        for partition, mark in of_source.items():
            marks[source][partition] = max(mark, marks[source].get(partition, mark))
    return Cut(
        offsets={partition: min(left.offsets[partition], right.offsets[partition]) for partition in partitions},
        marks=marks,
    )
