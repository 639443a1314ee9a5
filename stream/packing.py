"""Item ids in fewer bytes: what all ids of a user begin with stands once, and digits take half a byte.

The first byte says how the others are to be read. Any ids come back as they were, in their order. Everything is done
by a few operations on all ids at once, because every state that changes is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec

TEXTS, DECIMALS, HEXADECIMALS = range(3)
"""As MessagePack; ending in digits, behind one beginning; hexadecimal digits, with dashes perhaps, as UUIDs are.

Written into states: never renumber.
"""
_DIGITS = "0123456789"
_HEXADECIMAL = frozenset(_DIGITS + "abcdef")
_BETWEEN, _FILLING = "a", "f"
"""Hexadecimal digits that are no decimal ones: the first parts numbers from each other, the second ends half a byte."""
_NUL = "\0"
"""No id holds it."""
_MAX_BYTE = 255
_texts = msgspec.msgpack.Encoder().encode
_read_texts = msgspec.msgpack.Decoder(tuple[str, ...]).decode


def pack(ids: Sequence[str]) -> bytes:
    """The ids as bytes; none at all as no byte."""
    if not ids:
        return b""
    return _packed_decimals(ids) or _packed_hexadecimals(ids) or bytes((TEXTS,)) + _texts(ids)


def unpack(packed: bytes) -> tuple[str, ...]:
    """The ids that `pack` was given.

    Raises:
        ValueError: not what `pack` wrote.
    """
    if not packed:
        return ()
    kind = packed[0]
    if kind == DECIMALS:
        return _unpacked_decimals(packed)
    if kind == TEXTS:
        return _read_texts(memoryview(packed)[1:])
    if kind == HEXADECIMALS:
        return _unpacked_hexadecimals(packed)
    raise ValueError(f"item ids are packed in a way ({kind}) that this version does not know")


def _packed_decimals(ids: Sequence[str]) -> bytes | None:
    beginning = ids[0].rstrip(_DIGITS)
    size = len(beginning.encode())
    parted = _NUL + _NUL.join(ids)
    numbers = parted.replace(_NUL + beginning, _BETWEEN)
    digits = numbers.replace(_BETWEEN, "")
    if size > _MAX_BYTE or len(numbers) - len(digits) != len(ids) or not (digits.isascii() and digits.isdigit()):
        return None
    if _BETWEEN * 2 in numbers or numbers.endswith(_BETWEEN):
        return None
    numbers = numbers[1:]
    return (
        bytes((DECIMALS, size))
        + beginning.encode()
        + bytes.fromhex(numbers + _FILLING if len(numbers) % 2 else numbers)
    )


def _unpacked_decimals(packed: bytes) -> tuple[str, ...]:
    behind = 2 + packed[1]
    numbers = packed[behind:].hex().rstrip(_FILLING)
    if behind == 2:
        return tuple(numbers.split(_BETWEEN))
    beginning = packed[2:behind].decode()
    return tuple((beginning + numbers.replace(_BETWEEN, _NUL + beginning)).split(_NUL))


def _packed_hexadecimals(ids: Sequence[str]) -> bytes | None:
    """Ids of one length with their dashes at the same places; None where they are not like that."""
    sizes, length, together = [len(part) for part in ids[0].split("-")], len(ids[0]), "".join(ids)
    digits = together.replace("-", "")
    if set(map(len, ids)) != {length} or length > _MAX_BYTE or not digits or sum(sizes) % 2:
        return None
    if len(together) - len(digits) != len(ids) * (len(sizes) - 1) or not _HEXADECIMAL.issuperset(digits):
        return None
    if any(together[place::length] != "-" * len(ids) for place in _dashes(sizes)):
        return None
    return bytes((HEXADECIMALS, len(sizes), *sizes)) + bytes.fromhex(digits)


def _unpacked_hexadecimals(packed: bytes) -> tuple[str, ...]:
    sizes, digits = packed[2 : 2 + packed[1]], packed[2 + packed[1] :].hex().encode()
    per_id, length = sum(sizes), sum(sizes) + len(sizes) - 1
    # Column by column: of the first digits of all ids, of the second ones, and so on.
    together = bytearray(b"-") * (len(digits) // per_id * length)
    places = sorted(set(range(length)).difference(_dashes(sizes)))
    for nth, place in enumerate(places):
        together[place::length] = digits[nth::per_id]
    text = together.decode()
    return tuple([text[first : first + length] for first in range(0, len(text), length)])


def _dashes(sizes: Sequence[int]) -> list[int]:
    return [place + nth for nth, place in enumerate(accumulate(sizes[:-1]))]
