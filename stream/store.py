"""The users' states on disk: one RocksDB per partition, opened, recovered and handed over by the Faust table.

Beside the rows stand, under keys that no user can have because an id holds no NUL, the deadlines in their order and
the partition's marks. They follow from the rows, and are written together with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import rocksdict
import structlog

from stream.deadlines import DeadlineChanges, Due, changed_deadlines
from stream.marks import NEVER_DUE_MS, EventClock, Marks, applied_of, furthest
from stream.sequences import NEVER, Outline, decode_outline
from stream.settings import StreamSettings
from stream.sweeping import DueSoon

log = structlog.get_logger()

WRITE_BUFFER_BYTES = 16 << 20
BLOCK_CACHE_BYTES = 32 << 20
OPEN_FILES = 256
ROCKSDB_OPTIONS: Mapping[str, Any] = {
    "driver": "rocksdict",
    "write_buffer_size": WRITE_BUFFER_BYTES,
    "block_cache_size": BLOCK_CACHE_BYTES,
    "max_open_files": OPEN_FILES,
}
"""Per partition; Faust's own defaults take up to 2 GB of cache for each."""

OFFSET = b"__faust\0offset__"
"""Where Faust keeps how far `sequences` has been written to the disk."""
MARKS = b"\0marks"
DEADLINE = b"\0due"
TIME_BYTES = 8
REBUILT_AT_ONCE = 10_000

_decode_marks = msgspec.msgpack.Decoder(Marks).decode
_encode = msgspec.msgpack.Encoder().encode


class PartitionRows:
    """The database of one partition; for the fold it is where states are read."""

    def __init__(self, database: Any, settings: StreamSettings) -> None:  # noqa: ANN401 - rocksdict has no types
        self._database = database
        self._settings = settings

    def marks(self) -> Marks:
        """What is known of the partition as a whole; gathered from the rows where an older version wrote them."""
        raw = self._database.get(MARKS)
        if raw is None:
            self._rebuild()
            raw = self._database.get(MARKS)
        return _decode_marks(raw)

    def changelog_offset(self) -> int:
        """How far `sequences` has been written here; -1 where nothing has."""
        return int(self._database.get(OFFSET) or NEVER)

    def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """The rows of these users, None where there is none."""
        rows: Sequence[bytes | None] = self._database.get(keys)
        return rows

    def due(self, before_ms: int, *, most: int) -> DueSoon:
        """The earliest deadlines, no more than `most` of them, of those before a time."""
        entries: list[Due] = []
        place = self._database.iter()
        place.seek(_deadline_key(self.marks().next_due_ms, b""))
        while place.valid() and (key := place.key()).startswith(DEADLINE):
            due = _due_of(key)
            if due[0] >= before_ms or len(entries) >= most:
                return DueSoon(entries, due[0])
            entries.append(due)
            place.next()
        return DueSoon(entries, NEVER_DUE_MS)

    def write(
        self,
        rows: Mapping[bytes, bytes | None],
        marks: Marks,
        deadlines: DeadlineChanges,
        *,
        changelog_offset: int | None,
    ) -> None:
        """Writes rows that stand on the changelog up to this offset, and all that follows from them: all or nothing.

        Recovery reads the changelog from behind that offset, so a crash before or after is mended by it. Where the
        broker did not say the offset, the former one stays, and recovery reads a little more.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in rows.items():
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        for due_ms, key in deadlines.gone:
            batch.delete(_deadline_key(due_ms, key))
        for due_ms, key in deadlines.come:
            batch.put(_deadline_key(due_ms, key), b"")
        batch.put(MARKS, _encode(marks))
        if changelog_offset is not None:
            batch.put(OFFSET, str(changelog_offset).encode())
        self._database.write(batch)

    def restore(self, rows: Mapping[bytes, bytes | None], *, changelog_offset: int) -> None:
        """Takes over what `sequences` says of users, newest last, and gathers what follows from it.

        Raises:
            ValueError: a row that this version cannot read.
        """
        former = dict(zip(rows, map(_outline_of, rows, self.read(list(rows))), strict=True))
        states = {key: _outline_of(key, row) for key, row in rows.items()}
        deadlines = changed_deadlines(former, states, (), self._settings)
        marks = _with_states(self.marks(), states, deadlines)
        self.write(rows, marks, deadlines, changelog_offset=changelog_offset)

    def _rebuild(self) -> None:
        self._database.put(MARKS, _encode(Marks()))
        rows: dict[bytes, bytes | None] = {}
        for key, row in self._database.items():
            if b"\0" not in key:
                rows[key] = row
            if len(rows) >= REBUILT_AT_ONCE:
                self._gather(rows)
                rows.clear()
        self._gather(rows)

    def _gather(self, rows: Mapping[bytes, bytes | None]) -> None:
        states = {key: _outline_of(key, row) for key, row in rows.items()}
        deadlines = changed_deadlines(dict.fromkeys(states), states, (), self._settings)
        self.write({}, _with_states(self.marks(), states, deadlines), deadlines, changelog_offset=None)


class StateStore:
    """Reads and writes the table's rows by whole chunks, past Faust's write per key."""

    def __init__(self, table: Any, settings: StreamSettings) -> None:  # noqa: ANN401 - a Faust table has no types
        self._store = table.data
        self._settings = settings

    def partition(self, number: int) -> PartitionRows:
        """The rows of one partition, which Faust has opened; the next rebalance may take it away."""
        database = self._store._db_for_partition(number)  # noqa: SLF001 - Faust has no way to a partition's database
        return PartitionRows(database, self._settings)


def _with_states(marks: Marks, states: Mapping[bytes, Outline | None], deadlines: DeadlineChanges) -> Marks:
    clock, applied = EventClock(marks), marks.applied
    for key, state in states.items():
        if state is not None:
            clock.see(key, state.clock_ms)
            applied = furthest(applied, applied_of(state))
    return Marks(clock.newest, clock.second, applied, min(marks.next_due_ms, deadlines.earliest_ms))


def _outline_of(key: bytes, row: bytes | None) -> Outline | None:
    try:
        return None if row is None else decode_outline(row)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"the state of user {key!r} on `sequences` cannot be read ({error}); upgrade to the version that wrote it"
        ) from error


def _deadline_key(due_ms: int, key: bytes) -> bytes:
    return DEADLINE + due_ms.to_bytes(TIME_BYTES) + key


def _due_of(key: bytes) -> Due:
    behind = len(DEADLINE) + TIME_BYTES
    return int.from_bytes(key[len(DEADLINE) : behind]), key[behind:]


def last_rows(records: Iterable[Any]) -> dict[bytes, bytes | None]:
    """What a run of changelog records says last of each user."""
    return {record.key: record.value for record in records}
