"""What users had before a log begins, as organic clicks: the warm start of the sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deploy.replay.formats import Columns, in_order, to_common

_USER, _ITEMS, _LAST = "user_id", "watch_seq", "last_time_ms"
_SPACING_MS = 1_000


def load_histories(path: Path) -> pa.Table:
    """One click per item of every history, in the common form; `path` is parquet with a row per user.

    Only the time of a history's last item is known, so the others stand one second apart before it, in their order.

    Raises:
        ValueError: the columns user_id, watch_seq (items, oldest first) and last_time_ms are not there.
    """
    table = _read(path)
    lengths = pc.list_value_length(table[_ITEMS]).to_numpy()
    ends = np.repeat(np.cumsum(lengths), lengths)
    before_last = ends - 1 - np.arange(len(ends))
    owners = np.repeat(np.arange(table.num_rows), lengths)
    clicks = pa.table(
        {
            "user_id": table[_USER].cast(pa.string()).take(owners),
            "item_id": pc.list_flatten(table[_ITEMS]).cast(pa.string()),
        }
    )
    time_ms = table[_LAST].to_numpy()[owners] - _SPACING_MS * before_last
    columns = Columns(user="user_id", item="item_id", time="time_ms")
    return in_order(to_common(clicks, columns, pa.chunked_array([time_ms])))


def after_histories(rows: pa.Table, histories: pa.Table) -> pa.Table:
    """One log of both, in the order of time; of a user's history only what came before the user's first row."""
    first = rows.group_by("user_id").aggregate([("time_ms", "min")])
    first_ms = first["time_ms_min"].take(pc.index_in(histories["user_id"], value_set=first["user_id"]))
    is_before = pc.fill_null(pc.less(histories["time_ms"], first_ms), fill_value=True)
    return in_order(pa.concat_tables([histories.filter(is_before), rows]))


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=[_USER, _ITEMS, _LAST])
    except (OSError, pa.ArrowInvalid) as error:
        wanted = f"a parquet file with {_USER}, {_ITEMS} and {_LAST}"
        raise ValueError(f"{path} is not {wanted}: {error}; give another file with --histories") from error
