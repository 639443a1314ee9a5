"""Records as a Kafka client hands them over, and a store in memory: the fold without Kafka and without a disk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.json import encode

from stream.dead_letters import Headers
from stream.deadlines import Due
from stream.folding import FoldedBatch, Folder
from stream.marks import NEVER_DUE_MS, Marks
from stream.settings import KafkaSettings, StreamSettings
from stream.sweeping import DueSoon
from tests.strategies import Read

KAFKA = KafkaSettings()
SETTINGS = StreamSettings()
NO_HEADERS: Headers = []


class Raw(NamedTuple):
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers = NO_HEADERS


def raw(read: Read) -> Raw:
    event, arrival = read
    value = encode(event)
    return Raw(
        KAFKA.topic(arrival.source), arrival.partition, arrival.offset, event.user_id.encode(), value, arrival.at_ms
    )


class Store:
    """The users' states between batches, in memory."""

    def __init__(self, settings: StreamSettings = SETTINGS) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.deadlines: set[Due] = set()
        self.settings = settings
        self._marks = Marks()

    def marks(self) -> Marks:
        return self._marks

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def due(self, before_ms: int, *, most: int) -> DueSoon:
        assert all(due_ms >= self._marks.next_due_ms for due_ms, _ in self.deadlines)
        ordered = sorted(self.deadlines)
        entries = [due for due in ordered if due[0] < before_ms][:most]
        return DueSoon(entries, ordered[len(entries)][0] if len(entries) < len(ordered) else NEVER_DUE_MS)

    def fold(self, records: Sequence[Raw]) -> FoldedBatch:
        folded = Folder(KAFKA, self.settings).fold(records, self)
        self.write(folded)
        return folded

    def write(self, folded: FoldedBatch) -> None:
        for key, row in folded.states.items():
            self.rows.pop(key, None)
            if row is not None:
                self.rows[key] = row
        self.deadlines = self.deadlines - set(folded.deadlines.gone) | set(folded.deadlines.come)
        self._marks = folded.marks

    def copy(self) -> Store:
        return copy.deepcopy(self)
