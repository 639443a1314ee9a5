"""What is kept of a user: the sequence, the slates, the offsets folded in, the accounts.

One `UserState` is one row of the Faust table and one record on `sequences`, in MessagePack: arrays in field order, no
field names, times as gaps. New fields are appended with a default, so that older records stay readable. Before it stand
two bytes that no MessagePack begins with, and that say how items and gaps are packed; without them stand the records of
the first version, which are read as well.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Protocol, get_args

import msgspec

from stream.events import Cause, PropensityKind, Source
from stream.packing import pack, unpack
from stream.topics import CLICKS

SECOND_MS = 1_000
NEVER = -1
FRESH_MS = 60 * SECOND_MS
"""How long after a click a write for another reason still carries it as its cause."""

KINDS: tuple[PropensityKind, ...] = get_args(PropensityKind)
SOURCES: tuple[Source, ...] = get_args(Source)
"""Stored by index: append to the two, never reorder."""


class Times(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Ascending times, as the newest one and the gaps before it: one to three bytes each instead of nine."""

    newest_ms: int = 0
    gaps: tuple[int, ...] = ()
    """Between neighbours, oldest first, in units of `unit_ms`."""
    unit_ms: int = SECOND_MS
    """1,000 as long as every gap is whole seconds, else 1."""

    def to_ms(self) -> tuple[int, ...]:
        """The times themselves, oldest first: one more than there are gaps."""
        steps = (gap * self.unit_ms for gap in reversed(self.gaps))
        return tuple(accumulate(steps, int.__sub__, initial=self.newest_ms))[::-1]

    def before(self, at_ms: int) -> int:
        """How many of the times are earlier; looked up from the newest end, where it is asked for."""
        count, time_ms = len(self.gaps) + 1, self.newest_ms
        while time_ms >= at_ms:
            count -= 1
            if not count:
                break
            time_ms -= self.gaps[count - 1] * self.unit_ms
        return count

    def then(self, time_ms: int, *, keep: int) -> Times:
        """The newest `keep` (two or more) of these and of one that is not older than any."""
        gap, rest = divmod(time_ms - self.newest_ms, self.unit_ms)
        if rest:
            return times_of((*self.to_ms(), time_ms)[-keep:])
        return Times(time_ms, (*self.gaps, gap)[1 - keep :], self.unit_ms)


def times_of(times_ms: Iterable[int]) -> Times:
    """One ascending time or more as gaps, in whole seconds where that loses nothing."""
    times = tuple(times_ms)
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    if any(gap % SECOND_MS for gap in gaps):
        return Times(times[-1], gaps, 1)
    return Times(times[-1], tuple(gap // SECOND_MS for gap in gaps))


class Applied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The highest offset folded in, per source topic; what stands at or before it changes nothing any more."""

    clicks: int = NEVER
    impressions: int = NEVER
    recommendations: int = NEVER


class Accounts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How every event of the user ended (I2), counted in the state itself and so as exactly as the state.

    Clicks that were applied are `UserState.clicks_applied`; seen items still open are counted from the open slates.
    """

    clicks_duplicate: int = 0
    clicks_late: int = 0
    impressions: int = 0
    """Impression messages folded in; the counts of items below and those open add up to `items_seen`."""
    items_seen: int = 0
    items_clicked: int = 0
    items_expired: int = 0
    items_duplicate: int = 0
    items_late: int = 0
    slates: int = 0
    """Recommendation messages that opened or completed a slate."""
    slates_duplicate: int = 0
    slates_late: int = 0


class SlateClick(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A click that belongs to a slate: which slot, when, and whether it named the slate's request_id."""

    slot: int
    at_ms: int
    named: bool


class Slate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was served at once, column by column, with what came of it. A slot is an index into `items`."""

    request_id: str
    policy: str
    surface: str | None
    """None for a slate of which only impressions are known."""
    served_at_ms: int
    items: tuple[str, ...]
    positions: tuple[int | None, ...]
    """Empty where slot and position agree."""
    propensities: tuple[float | None, ...]
    """Empty where none is known."""
    kinds: bytes
    """Per slot an index into `KINDS`; empty where none is known."""
    sources: bytes
    """Per slot an index into `SOURCES`."""
    seen: tuple[int, ...] = ()
    """Slots that came into view, ascending."""
    clicks: tuple[SlateClick, ...] = ()
    router_probability: float = 1.0
    rivals: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """Of every other recommender that is known: its router probability, and its propensity of each slot it could fill;
    slots that were added later have none.
    """


class ParkedClick(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A click on its way to an example; in a state, one that names a slate which nobody knows yet.

    The sequence has it already; only its example waits for the slate.
    """

    item_id: str
    at_ms: int
    request_id: str | None
    position: int | None
    arrived_at_ms: int
    context: tuple[str, ...]
    context_times: Times | None = None
    """Of the context, kept while the click waits: what is inserted meanwhile was not before the user at the click."""


class Inherited(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is left of users who were forgotten at an event of this one: how their events ended, and the offsets."""

    users: int = 0
    clicks_applied: int = 0
    accounts: Accounts = Accounts()
    applied: Applied = Applied()


class UserState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything the stream knows of one user."""

    items: tuple[str, ...] = ()
    """The last items chosen, oldest first."""
    times: Times = Times()
    """One per item; meaningless while there is none."""
    clicks_applied: int = 0
    """Ever, also those that have fallen off `items`."""
    applied: Applied = Applied()
    click: tuple[int, int, int] | None = None
    """Partition, offset and arrival of `cause`."""
    clock_ms: int = 0
    """Event time of the newest event of any kind."""
    event_ids: bytes = b""
    """Eight bytes of hash for each of the last clicks: the same event_id is the same click, whatever it says."""
    accounts: Accounts = Accounts()
    slates: tuple[Slate, ...] = ()
    """Open, in the order in which they became known."""
    closed: tuple[Slate, ...] = ()
    """The last ones closed, kept so that what comes late corrects them."""
    parked: tuple[ParkedClick, ...] = ()
    inherited: Inherited | None = None

    @property
    def times_ms(self) -> tuple[int, ...]:
        """Event times of `items`."""
        return self.times.to_ms() if self.items else ()

    def place_of(self, at_ms: int) -> int:
        """Where an item chosen at a time stands among `items`: behind all that are not newer."""
        if not self.items or at_ms >= self.times.newest_ms:
            return len(self.items)
        return self.times.before(at_ms + 1)

    @property
    def cause(self) -> Cause | None:
        """The click that this write answers; None where only slates or impressions changed a minute after it or later.

        A duplicate leaves it standing, so that a cause may be written again, never with another offset.
        """
        if self.click is None:
            return None
        partition, offset, arrived_at_ms = self.click
        return Cause(topic=CLICKS, partition=partition, offset=offset, arrived_at_ms=arrived_at_ms)


def fresh_click(state: UserState, now_ms: int) -> tuple[int, int, int] | None:
    """The click that the state answers, unless it came in more than a minute ago by Kafka's timestamps.

    Of the writes of one batch only the last is seen: a click must not go unanswered because a slate was closed behind
    it. But whoever has long gone is not to be recommended anything because a window ended.
    """
    return None if state.click is None or now_ms - state.click[2] > FRESH_MS else state.click


def with_fresh_cause(state: UserState, now_ms: int) -> UserState:
    """The state with only a fresh click to answer."""
    click = fresh_click(state, now_ms)
    return state if click is state.click else msgspec.structs.replace(state, click=click)


PACKED = b"\xc1\x02"
"""Begins a state whose items and times are packed: 0xC1 stands nowhere in MessagePack, then comes the version."""
_VERSION_BYTES = len(PACKED)
_MAX_UINT32 = (1 << 32) - 1


class PackedTimes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`Times` as they are written: gaps of milliseconds take four bytes each where they fit, MessagePack five."""

    newest_ms: int = 0
    gaps: tuple[int, ...] | bytes = ()
    unit_ms: int = SECOND_MS


class _PackedState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`UserState` as it is written; what is not packed is as there."""

    items: bytes = b""
    times: PackedTimes = PackedTimes()
    clicks_applied: int = 0
    applied: Applied = Applied()
    click: tuple[int, int, int] | None = None
    clock_ms: int = 0
    event_ids: bytes = b""
    accounts: Accounts = Accounts()
    slates: tuple[Slate, ...] = ()
    closed: tuple[Slate, ...] = ()
    parked: tuple[ParkedClick, ...] = ()
    inherited: Inherited | None = None


class Outline(Protocol):
    """What of a state its items and times are not needed for."""

    @property
    def clock_ms(self) -> int:
        """As in `UserState`; so are the others."""

    @property
    def applied(self) -> Applied:
        """Offsets."""

    @property
    def slates(self) -> tuple[Slate, ...]:
        """Open ones."""

    @property
    def closed(self) -> tuple[Slate, ...]:
        """Remembered ones."""

    @property
    def parked(self) -> tuple[ParkedClick, ...]:
        """Clicks that wait."""

    @property
    def inherited(self) -> Inherited | None:
        """Of users who were forgotten."""


_encoder = msgspec.msgpack.Encoder()


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[_PackedState]:
    return msgspec.msgpack.Decoder(_PackedState)


@functools.cache
def _first_decoder() -> msgspec.msgpack.Decoder[UserState]:
    return msgspec.msgpack.Decoder(UserState)


def encode_state(state: UserState) -> bytes:
    """The same state is always the same bytes."""
    packed = _PackedState(
        pack(state.items),
        _packed_times(state.times),
        state.clicks_applied,
        state.applied,
        state.click,
        state.clock_ms,
        state.event_ids,
        state.accounts,
        state.slates,
        state.closed,
        state.parked,
        state.inherited,
    )
    return PACKED + _encoder.encode(packed)


def decode_state(raw: bytes) -> UserState:
    """Reads what `encode_state` wrote, this version's or an earlier one's.

    Raises:
        msgspec.DecodeError: not a user's state, or that of a later version.
    """
    if not is_packed(raw):
        return _first_decoder().decode(raw)
    packed = _decoder().decode(raw[_VERSION_BYTES:])
    try:
        items, times = unpack(packed.items), _unpacked_times(packed.times)
    except (ValueError, IndexError, struct.error) as error:
        raise msgspec.DecodeError(f"items or times of the state are not as they are packed: {error}") from error
    return UserState(
        items,
        times,
        packed.clicks_applied,
        packed.applied,
        packed.click,
        packed.clock_ms,
        packed.event_ids,
        packed.accounts,
        packed.slates,
        packed.closed,
        packed.parked,
        packed.inherited,
    )


def decode_outline(raw: bytes) -> Outline:
    """Reads what `encode_state` wrote in half the time of `decode_state`.

    Raises:
        msgspec.DecodeError: not a user's state, or that of a later version.
    """
    return _decoder().decode(raw[_VERSION_BYTES:]) if is_packed(raw) else _first_decoder().decode(raw)


def is_packed(raw: bytes) -> bool:
    """Whether a state is of this version; the first one had no number.

    Raises:
        msgspec.DecodeError: it is of a later version.
    """
    if raw[:1] != PACKED[:1]:
        return False
    if raw[:_VERSION_BYTES] != PACKED:
        raise msgspec.DecodeError(f"a state of version {raw[1:_VERSION_BYTES].hex()}, written by a later sasrec-stream")
    return True


def _packed_times(times: Times) -> PackedTimes:
    gaps = times.gaps
    if times.unit_ms == SECOND_MS or not gaps or max(gaps) > _MAX_UINT32:
        return PackedTimes(times.newest_ms, gaps, times.unit_ms)
    return PackedTimes(times.newest_ms, struct.pack(f"<{len(gaps)}I", *gaps), times.unit_ms)


def _unpacked_times(packed: PackedTimes) -> Times:
    gaps = packed.gaps
    if isinstance(gaps, bytes):
        gaps = struct.unpack(f"<{len(gaps) // 4}I", gaps)
    return Times(packed.newest_ms, gaps, packed.unit_ms)
