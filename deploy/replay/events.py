"""Rows of a log, made into the messages that an application would have sent.

A row that was shown becomes an impression of its one item, a slate of its own; a clicked row becomes a click of the
same millisecond, on that slate where it was shown. Ids follow from user, item and time alone, so a row that stands
twice in the file, or is played twice, is a duplicate for the join.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pyarrow as pa

from stream.events import MAX_ID_BYTES, Click, Impression, SeenItem
from stream.topics import CLICKS, IMPRESSIONS

_ROWS_AT_ONCE = 8_192
_ROOM_FOR_SUFFIX = 8


class Message(NamedTuple):
    """What goes to Kafka; `topic` without the prefix."""

    topic: str
    key: bytes
    value: bytes


class Event(NamedTuple):
    """A row of a log: its messages and when it happened."""

    time_ms: int
    messages: tuple[Message, ...]


class _Row(NamedTuple):
    user_id: str
    item_id: str
    time_ms: int
    shown: bool
    clicked: bool
    propensity: float | None
    position: int | None
    policy: str | None


def events(rows: pa.Table) -> Iterator[Event]:
    """One event per row of the common form (deploy/replay/formats.py), in its order.

    Raises:
        ValueError: a row that breaks the bounds of the records; the message names it.
    """
    for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield _event(_Row(*values))


def row_id(user_id: str, item_id: str, time_ms: int) -> str:
    """The same for the same user, item and time; a hash where the ids are too long to stand in it."""
    text = f"{user_id}:{item_id}:{time_ms}"
    if len(text.encode()) <= MAX_ID_BYTES - _ROOM_FOR_SUFFIX:
        return text
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _event(row: _Row) -> Event:
    try:
        return Event(row.time_ms, tuple(_messages(row)))
    except ValueError as error:
        raise ValueError(f"user {row.user_id!r}, item {row.item_id!r}, {row.time_ms} ms: {error}") from error


def _messages(row: _Row) -> Iterator[Message]:
    key = row.user_id.encode()
    slate = row_id(row.user_id, row.item_id, row.time_ms)
    if row.shown:
        yield Message(IMPRESSIONS, key, msgspec.json.encode(_impression(row, slate)))
    if row.clicked:
        yield Message(CLICKS, key, msgspec.json.encode(_click(row, slate)))


def _impression(row: _Row, slate: str) -> Impression:
    return Impression(
        event_id=slate + "/seen",
        user_id=row.user_id,
        timestamp_ms=row.time_ms,
        items=(SeenItem(item_id=row.item_id, position=row.position, propensity=row.propensity),),
        request_id=slate,
        policy=row.policy,
    )


def _click(row: _Row, slate: str) -> Click:
    return Click(
        event_id=slate + "/click",
        user_id=row.user_id,
        item_id=row.item_id,
        timestamp_ms=row.time_ms,
        request_id=slate if row.shown else None,
        position=row.position,
    )
