"""What the process that leads a crew tells the others: everything that changes a learner or a reader, in its order."""

from __future__ import annotations

import msgspec


class Poll(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Poll once, and exchange what came."""

    most: int
    timeout_seconds: float


class Learn(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Learn what was polled since the last time, as one micro-batch."""

    wary: bool


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Become a learner that knows nothing."""


class Resume(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Become the learner of a full checkpoint, and go to its cut."""

    path: str


class BeginAnew(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Take whatever loss comes for the usual."""


class Compare(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See that all learners are the same."""


class Stop(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It is over."""


Order = Poll | Learn | Begin | Resume | BeginAnew | Compare | Stop

_decoder = msgspec.msgpack.Decoder(Order)


def encode_order(order: Order) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode(order)


def decode_order(raw: bytes) -> Order:
    """Reads what `encode_order` wrote."""
    order: Order = _decoder.decode(raw)
    return order
