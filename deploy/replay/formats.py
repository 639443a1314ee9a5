"""Public and private logs, read into one columnar form.

A log is an Arrow table in the order of time, then user, then the file's own order within the user. Its columns:
user_id, item_id (text), time_ms (int64), shown, clicked (bool), propensity (float64), position (int64), policy (text);
the last three are null where the file does not say. A row that was `shown` becomes an impression, one that was
`clicked` becomes a click.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from deploy.replay.layouts import Layout, layout_of, read_columns
from deploy.replay.times import TimeUnit, to_milliseconds
from stream.events import MAX_SLATE_ITEMS

FormatName = Literal["movielens", "kuairand", "generic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns that matter are called in a file; None: it has none."""

    user: str
    item: str
    time: str
    clicked: str | None = None
    """Without it every row is a click."""
    propensity: str | None = None
    position: str | None = None
    policy: str | None = None
    order: str | None = None
    """Order within the user, where times are too coarse to say; the order in the file where absent."""

    def names(self) -> tuple[str, ...]:
        """Every column that is named, once."""
        return tuple(dict.fromkeys(name for name in dataclasses.astuple(self) if name is not None))

    @property
    def shown(self) -> bool:
        """Whether the rows were served by somebody: only then can they stay unclicked or have a propensity."""
        return any(name is not None for name in (self.clicked, self.propensity, self.policy))


class Log(NamedTuple):
    """A log in the common form, and how it was understood."""

    rows: pa.Table
    format: FormatName
    time_unit: TimeUnit


_PUBLIC: tuple[tuple[FormatName, Columns], ...] = (
    ("kuairand", Columns(user="user_id", item="video_id", time="time_ms", clicked="is_click")),
    ("kuairand", Columns(user="user_id", item="item_id", time="time_ms", clicked="is_click", policy="policy")),
    ("movielens", Columns(user="userId", item="movieId", time="timestamp")),
    ("movielens", Columns(user="user_id", item="item_id", time="timestamp", order="pos")),
    ("movielens", Columns(user="user_id", item="item_id", time="timestamp")),
)


def load_log(
    path: Path,
    *,
    columns: Columns | None = None,
    format_name: FormatName | None = None,
    time_unit: TimeUnit | None = None,
) -> Log:
    """Reads a log; format and time unit are recognised by what is in the file unless they are forced.

    Raises:
        ValueError: no such file or column, a format that the file does not have, empty ids or unreadable times.
    """
    layout = layout_of(path)
    known, chosen = _choose(path, layout, columns=columns, format_name=format_name)
    table = read_columns(path, layout, names=chosen.names(), text=_text_columns(chosen))
    _refuse_empty(path, table, chosen)
    times = to_milliseconds(table[chosen.time], unit=time_unit, column=chosen.time)
    return Log(rows=in_order(to_common(table, chosen, times.time_ms)), format=known, time_unit=times.unit)


def to_common(table: pa.Table, columns: Columns, time_ms: pa.ChunkedArray) -> pa.Table:
    """The columns of the common form, in the order of the file or of `columns.order`."""
    if columns.order is not None:
        by_order = pc.sort_indices(table, sort_keys=[(columns.order, "ascending")])
        table, time_ms = table.take(by_order), time_ms.take(by_order)
    return pa.table(
        {
            "user_id": table[columns.user],
            "item_id": table[columns.item],
            "time_ms": time_ms,
            "shown": pa.repeat(pa.scalar(columns.shown), table.num_rows),
            "clicked": _clicked(table, columns.clicked),
            "propensity": _optional(table, columns.propensity, pa.float64()),
            "position": _positions(table, columns.position),
            "policy": _optional(table, columns.policy, pa.string()),
        }
    )


def in_order(rows: pa.Table) -> pa.Table:
    """Rows by time, then user; rows that tie keep their order."""
    return rows.take(pc.sort_indices(rows, sort_keys=[("time_ms", "ascending"), ("user_id", "ascending")]))


def _choose(
    path: Path, layout: Layout, *, columns: Columns | None, format_name: FormatName | None
) -> tuple[FormatName, Columns]:
    if columns is not None:
        _refuse_unknown(path, layout, columns)
        return "generic", columns
    for name, candidate in _PUBLIC:
        if format_name in (None, name) and set(candidate.names()) <= set(layout.names):
            return name, candidate
    wanted = f"is not {format_name}" if format_name not in (None, "generic") else "is in no format known here"
    raise ValueError(
        f"{path} {wanted}; name its columns with --user-column, --item-column and --time-column; {_it_has(layout)}"
    )


def _refuse_unknown(path: Path, layout: Layout, columns: Columns) -> None:
    missing = [name for name in columns.names() if name not in layout.names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; {_it_has(layout)}")


def _it_has(layout: Layout) -> str:
    return "it has: " + ", ".join(layout.names)


def _text_columns(columns: Columns) -> tuple[str, ...]:
    return tuple(name for name in (columns.user, columns.item, columns.policy) if name is not None)


def _refuse_empty(path: Path, table: pa.Table, columns: Columns) -> None:
    if table.num_rows == 0:
        raise ValueError(f"{path} has a header but no rows; give a log with rows")
    for name in (columns.user, columns.item, columns.time):
        if table[name].null_count:
            first = pc.index(pc.is_null(table[name]), value=True).as_py() + 1
            raise ValueError(
                f"{path}: column {name} is empty in {table[name].null_count:,} rows, first in row {first:,}; "
                "fill them or take the rows out"
            )


def _clicked(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    if name is None:
        return pa.repeat(pa.scalar(True), table.num_rows)  # noqa: FBT003 - Arrow names no parameter here
    return pc.fill_null(_optional(table, name, pa.bool_()), fill_value=False)


def _positions(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    positions = _optional(table, name, pa.int64())
    bounds = pc.min_max(positions).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < MAX_SLATE_ITEMS:
        raise ValueError(
            f"column {name} runs from {bounds['min']} to {bounds['max']}; a position lies in 0 to "
            f"{MAX_SLATE_ITEMS - 1}: mend it or leave out --position-column"
        )
    return positions


def _optional(table: pa.Table, name: str | None, kind: pa.DataType) -> pa.ChunkedArray:
    if name is None:
        return pa.nulls(table.num_rows, kind)
    try:
        return table[name].cast(kind)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {name} does not hold what was promised: {error}; name another column") from error
