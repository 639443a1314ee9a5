"""The users' states on disk: one RocksDB per partition, opened, recovered and handed over by the Faust table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rocksdict

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


class StateStore:
    """Reads and writes the table's rows by whole chunks, past Faust's write per key."""

    def __init__(self, table: Any) -> None:  # noqa: ANN401 - a Faust table, which has no types
        self._store = table.data

    def read(self, partition: int, keys: list[bytes]) -> Sequence[bytes | None]:
        """The rows of these keys, None where there is none."""
        rows: Sequence[bytes | None] = self._partition(partition).get(keys)
        return rows

    def write(self, partition: int, rows: Mapping[bytes, bytes], *, changelog_offset: int | None) -> None:
        """Writes rows that stand on the changelog up to this offset, and the offset with them: all or nothing.

        Recovery reads the changelog from behind that offset, so a crash before or after is mended by it. Where the
        broker did not say the offset, the former one stays, and recovery reads a little more.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in rows.items():
            batch.put(key, row)
        if changelog_offset is not None:
            batch.put(self._store.offset_key, str(changelog_offset).encode())
        self._partition(partition).write(batch)

    def _partition(self, partition: int) -> Any:  # noqa: ANN401 - rocksdict has no types
        return self._store._db_for_partition(partition)  # noqa: SLF001 - Faust has no way to a partition's database
