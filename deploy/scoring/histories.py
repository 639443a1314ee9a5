"""What every user has had, in memory: rebuilt from `sequences`, bounded by a number of users."""

from __future__ import annotations

import functools
from collections import OrderedDict

import msgspec

from stream.events import Cause, Request
from stream.packing import pack, unpack
from stream.sequences import PACKED, is_packed
from stream.topics import CLICKS


class _Times(msgspec.Struct, frozen=True, array_like=True, gc=False):
    newest_ms: int = 0


class _Applied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    clicks: int = -1


class History(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first fields of a state on `sequences`: reading only these costs a third of reading all."""

    packed: bytes = b""
    """The items, as `stream.packing` packs them."""
    times: _Times = _Times()
    """Only the newest is read."""
    clicks_applied: int = 0
    applied: _Applied = _Applied()
    """Only that of `clicks` is read."""
    click: tuple[int, int, int] | None = None

    @property
    def items(self) -> tuple[str, ...]:
        """Oldest first."""
        return unpack(self.packed)

    @property
    def cause(self) -> Cause | None:
        """The click that this write answers; None where only slates or impressions changed."""
        if self.click is None:
            return None
        partition, offset, arrived_at_ms = self.click
        return Cause(topic=CLICKS, partition=partition, offset=offset, arrived_at_ms=arrived_at_ms)


class Known(msgspec.Struct, frozen=True, gc=False):
    """How much of a user is known. Of a million of these none is looked at by the garbage collector."""

    clicks_applied: int
    """Clicks ever folded into the sequence."""
    click_offset: int
    """The highest offset of `clicks` that was folded in, whatever came of it; -1 before the first."""
    newest_ms: int
    """Event time of the newest click."""

    def reaches(self, request: Request) -> bool:
        """Whether the clicks are in that the request waits for."""
        offset, at_ms = request.fresh_through_offset, request.fresh_through_ms
        return (offset is None or self.click_offset >= offset) and (at_ms is None or self.newest_ms >= at_ms)


NOBODY = Known(0, -1, 0)


class _Kept(msgspec.Struct, frozen=True, gc=False):
    partition: int
    items: bytes
    """Packed: half a kilobyte or less for a hundred items instead of six, and nothing for the garbage collector."""
    click_offset: int | None
    """Of the click last answered."""
    known: Known


class _FirstHistory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The same of a state of the first version."""

    items: tuple[str, ...] = ()
    times: _Times = _Times()
    clicks_applied: int = 0
    applied: _Applied = _Applied()
    click: tuple[int, int, int] | None = None


@functools.cache
def _first_decoder() -> msgspec.msgpack.Decoder[_FirstHistory]:
    return msgspec.msgpack.Decoder(_FirstHistory)


@functools.cache
def _history_decoder() -> msgspec.msgpack.Decoder[History]:
    return msgspec.msgpack.Decoder(History)


def decode_history(raw: bytes) -> History:
    """Reads the part of a user's state that recommending needs.

    Raises:
        msgspec.DecodeError: not a user's state.
    """
    if is_packed(raw):
        return _history_decoder().decode(raw[len(PACKED) :])
    first = _first_decoder().decode(raw)
    return History(pack(first.items), first.times, first.clicks_applied, first.applied, first.click)


class Histories:
    """User to items, least recently active first; beyond `max_users` the first goes and is unknown from then on."""

    def __init__(self, *, max_users: int) -> None:
        self._max_users = max_users
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, user_id: str, history: History, *, partition: int) -> Cause | None:
        """Takes over what a user's newest record says, and returns the click in it that was not here before.

        The same click stands in two records when the stream worker met a duplicate of it: it is returned once.
        """
        cause, before = history.cause, self._kept.get(user_id)
        last = None if before is None else before.click_offset
        offset = last if cause is None else cause.offset
        self._kept[user_id] = _Kept(partition, history.packed, offset, _known(history))
        self._kept.move_to_end(user_id)
        if len(self._kept) > self._max_users:
            self._kept.popitem(last=False)
        return None if offset == last else cause

    def remove(self, user_id: str) -> None:
        """A tombstone: the user is unknown from now on."""
        self._kept.pop(user_id, None)

    def items_of(self, user_id: str) -> tuple[str, ...]:
        """What the user has had, oldest first; empty for a user nobody knows."""
        kept = self._kept.get(user_id)
        return () if kept is None else unpack(kept.items)

    def known(self, user_id: str) -> Known:
        """How much is known of a user."""
        kept = self._kept.get(user_id)
        return NOBODY if kept is None else kept.known

    def has(self, user_id: str) -> bool:
        """Whether anything is known of a user."""
        return user_id in self._kept

    def forget(self, partitions: frozenset[int]) -> None:
        """Another worker has these users now."""
        for user_id in [user_id for user_id, kept in self._kept.items() if kept.partition in partitions]:
            del self._kept[user_id]


def _known(history: History) -> Known:
    return Known(history.clicks_applied, history.applied.clicks, history.times.newest_ms if history.packed else 0)
