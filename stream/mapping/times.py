"""Times of a company's events, in whatever unit or format, as milliseconds since 1970."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

UNITS = {"s": Fraction(1_000), "ms": Fraction(1), "us": Fraction(1, 1_000), "ns": Fraction(1, 1_000_000)}
"""Milliseconds in each."""
ISO = "iso8601"
KAFKA = "kafka"


def check_format(text: str) -> None:
    """Refuses what `to_ms` could not read.

    Raises:
        ValueError: neither a unit nor a format.
    """
    if text not in (*UNITS, ISO, KAFKA) and "%" not in text:
        raise ValueError(f"timestamp `{text}` is none of {', '.join(UNITS)}, {ISO}, {KAFKA} or a strptime format")


def to_ms(value: Any, written_in: str) -> int:  # noqa: ANN401 - whatever stands in an event
    """Milliseconds since 1970, rounded down. A date that a decoder made (Avro) is taken as it is.

    Raises:
        ValueError: not such a time.
    """
    if isinstance(value, datetime):
        return _ms_of(value)
    if written_in in UNITS:
        return math.floor(_number(value, written_in) * UNITS[written_in])
    try:
        return _ms_of(datetime.fromisoformat(value) if written_in == ISO else _parsed(value, written_in))
    except TypeError as error:
        raise ValueError(f"{value!r} is no text to be read as {written_in}") from error


def _number(value: Any, unit: str) -> Fraction:  # noqa: ANN401 - see above
    is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        # The shortest decimal of a float is what was written: 1.1 s are 1,100 ms, not 1,100.0000000000001.
        return Fraction(str(value) if isinstance(value, float) else value) if is_number else Fraction("none")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{value!r} is no number of {unit}") from error


def _parsed(text: str, written_in: str) -> datetime:
    return datetime.strptime(text, written_in)  # noqa: DTZ007 - `_ms_of` takes what names no zone as UTC


def _ms_of(at: datetime) -> int:
    zoned = at if at.tzinfo else at.replace(tzinfo=UTC)
    return math.floor(Fraction(str(zoned.timestamp())) * 1_000)
