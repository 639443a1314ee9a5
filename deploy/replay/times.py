"""Event times of a log, in milliseconds since 1970, whatever unit the file keeps them in.

The records only live between 1980 and 2100, and in those years seconds, milliseconds and microseconds never share a
number: the unit can be read off the file.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stream.events import EARLIEST_MS, LATEST_MS

TimeUnit = Literal["s", "ms", "us", "iso"]

_PER_MILLISECOND = {"s": 0.001, "ms": 1, "us": 1_000}


class Times(NamedTuple):
    """`time_ms` is an int64 column without nulls; `unit` is what the file keeps."""

    time_ms: pa.ChunkedArray
    unit: TimeUnit


def to_milliseconds(times: pa.ChunkedArray, *, unit: TimeUnit | None, column: str) -> Times:
    """Reads a time column; the unit is detected where None is given. Times without a zone are UTC.

    Raises:
        ValueError: no unit puts all times between 1980 and 2100, or text that is no ISO 8601.
    """
    if pa.types.is_integer(times.type) or pa.types.is_floating(times.type):
        return _numbers(times, unit=unit, column=column)
    if unit not in (None, "iso"):
        raise ValueError(f"column {column} holds {times.type}, not numbers in {unit}; leave out --time-unit")
    return Times(time_ms=_instants(times, column=column), unit="iso")


def _numbers(times: pa.ChunkedArray, *, unit: TimeUnit | None, column: str) -> Times:
    if unit == "iso":
        raise ValueError(f"column {column} holds numbers, not ISO 8601; leave out --time-unit")
    bounds = pc.min_max(times).as_py()
    chosen = unit or _unit_of(bounds["min"], bounds["max"], column=column)
    if not _fits(chosen, bounds["min"], bounds["max"]):
        raise ValueError(
            f"column {column} runs from {bounds['min']} to {bounds['max']}, which is not between 1980 and 2100 in "
            f"{chosen}; leave out --time-unit or name another column with --time-column"
        )
    if chosen == "s":
        return Times(time_ms=pc.cast(pc.round(pc.multiply(times, 1_000)), pa.int64()), unit=chosen)
    return Times(time_ms=pc.cast(pc.floor(pc.divide(times, _PER_MILLISECOND[chosen])), pa.int64()), unit=chosen)


def _unit_of(earliest: float, latest: float, *, column: str) -> TimeUnit:
    units: tuple[TimeUnit, ...] = ("s", "ms", "us")
    for unit in units:
        if _fits(unit, earliest, latest):
            return unit
    raise ValueError(
        f"column {column} runs from {earliest} to {latest}: neither seconds, milliseconds nor microseconds put all of "
        "it between 1980 and 2100; name another column with --time-column or mend the rows"
    )


def _fits(unit: TimeUnit, earliest: float, latest: float) -> bool:
    scale = _PER_MILLISECOND[unit]
    return EARLIEST_MS * scale <= earliest and latest <= LATEST_MS * scale


def _instants(times: pa.ChunkedArray, *, column: str) -> pa.ChunkedArray:
    for instant in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            moments = pc.cast(times, instant, safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return pc.cast(pc.cast(moments, pa.timestamp("ms"), safe=False), pa.int64())
    raise ValueError(
        f"column {column} holds {times.type} that is no ISO 8601 time, such as {times[0].as_py()!r}; "
        "name another column with --time-column"
    )
