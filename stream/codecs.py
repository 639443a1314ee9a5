"""Bounds what a compressed batch may become in memory: a megabyte of zstd can hold gigabytes of zeros.

Kafka bounds messages as they are compressed, and both clients decompress a batch in one piece. Here, a batch that could
grow past the limit is decompressed piece by piece. Where it does, its records are written anew with the beginnings of
their values only, and a header that says so: every record stays where it was, what was cut cannot be read any more, and
goes to the dead letters like whatever else nobody can read. Record format v2, https://kafka.apache.org/documentation/#record.
"""

from __future__ import annotations

import importlib
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import lz4.frame
import zstandard

from stream.dead_letters import CUT_FROM

LIMIT_BYTES = 64 << 20
"""Of one decompressed batch; producers send batches of a megabyte at most unless told otherwise."""
KEPT_BYTES = 1_024
"""Of each key and value in a batch beyond the limit."""
KEPT_HEADER_BYTES = 4_096
PIECE_BYTES = 1 << 20
GZIP_WINDOW = 31

KAFKA_PYTHON = ("kafka.record.default_records",)
AIOKAFKA = ("aiokafka.record.default_records", "aiokafka.record._crecords.default_records")
"""Where the clients keep their functions that decompress."""

Decode = Callable[[bytes], bytes]
Pieces = Callable[[bytes], Iterator[bytes]]


def bound_decompression(modules: Iterable[str]) -> None:
    """Puts the bound into a client, for the whole process; a second time changes nothing."""
    for module in map(importlib.import_module, modules):
        for name, codec in _CODECS.items():
            decode = getattr(module, name)
            if not isinstance(decode, Bounded):
                setattr(module, name, Bounded(decode, codec))


class Codec(NamedTuple):
    """How large a compressed byte can become at most, and the pieces of what was compressed."""

    ratio: int
    pieces: Pieces


class Bounded:
    """A client's function that decompresses, for batches of any size."""

    def __init__(self, decode: Decode, codec: Codec) -> None:
        self._decode = decode
        self._codec = codec

    def __call__(self, payload: bytes) -> bytes:
        """The records of a batch, or what is left of them."""
        if len(payload) * self._codec.ratio <= LIMIT_BYTES:
            return self._decode(payload)
        pieces = self._codec.pieces(bytes(payload))
        held: list[bytes] = []
        size = 0
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size > LIMIT_BYTES:
                return _rewritten(itertools.chain(_released(held), pieces))
        return b"".join(held)


def _released(held: list[bytes]) -> Iterator[bytes]:
    """The pieces in order, each let go as it is handed on."""
    held.reverse()
    while held:
        yield held.pop()


def _gzip(payload: bytes) -> Iterator[bytes]:
    while payload:
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof:
            yield member.decompress(payload, PIECE_BYTES)
            if not member.unconsumed_tail and not member.eof:
                yield member.flush()
                break
            payload = member.unconsumed_tail
        payload = member.unused_data


def _zstd(payload: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(payload), read_across_frames=True) as reader:
        while piece := reader.read(PIECE_BYTES):
            yield piece


def _lz4(payload: bytes) -> Iterator[bytes]:
    with lz4.frame.LZ4FrameFile(io.BytesIO(payload)) as reader:
        while piece := reader.read(PIECE_BYTES):
            yield piece


_CODECS = {
    "gzip_decode": Codec(1_032, _gzip),
    "lz4_decode": Codec(255, _lz4),
    # A block of 128 KiB of one byte takes four.
    "zstd_decode": Codec(1 << 15, _zstd),
}
"""Snappy makes at most 22 bytes of one, so that no message which a broker lets through is large."""


class _Reader:
    """Takes bytes off pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return not self._fill()

    def take(self, count: int, *, keep: int | None = None) -> bytes:
        """The next bytes, of which only the first `keep` are kept."""
        keep = count if keep is None else min(keep, count)
        kept = bytearray()
        while count and self._fill():
            step = min(count, len(self._rest) - self._at)
            kept += self._rest[self._at : self._at + min(step, keep - len(kept))]
            self._at += step
            count -= step
        return bytes(kept)

    def varint(self) -> int:
        """A zigzag number."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7

    def _fill(self) -> bool:
        while self._at >= len(self._rest):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest, self._at = piece, 0
        return True


def _rewritten(pieces: Iterator[bytes]) -> bytes:
    """The same records with the beginnings of their keys and values; what exceeds the limit even so loses its value."""
    reader, written = _Reader(pieces), bytearray()
    while not reader.is_at_end:
        record = _record(reader, keep=KEPT_BYTES if len(written) < LIMIT_BYTES else 0)
        written += _varint(len(record)) + record
    return bytes(written)


def _record(reader: _Reader, *, keep: int) -> bytes:
    reader.varint()  # the length, which will be another one
    head = reader.take(1) + _varint(reader.varint()) + _varint(reader.varint())  # attributes, time, offset
    key_length = reader.varint()
    key = reader.take(key_length, keep=keep) if key_length >= 0 else None
    value_length = reader.varint()
    value = reader.take(value_length, keep=keep) if value_length >= 0 else None
    headers = _headers(reader)
    if max(key_length, value_length) > keep:
        headers.append((CUT_FROM.encode(), str(max(value_length, 0)).encode()))
    written = head + _bytes(key) + _bytes(value) + _varint(len(headers))
    return written + b"".join(_bytes(name) + _bytes(content) for name, content in headers)


def _headers(reader: _Reader) -> list[tuple[bytes, bytes | None]]:
    """As many from the first as there is room for."""
    room = KEPT_HEADER_BYTES
    kept: list[tuple[bytes, bytes | None]] = []
    for _ in range(reader.varint()):
        name_length = reader.varint()
        name = reader.take(name_length, keep=room + 1)
        length = reader.varint()
        content = reader.take(length, keep=room + 1) if length >= 0 else None
        room -= name_length + max(length, 0)
        if room >= 0:
            kept.append((name, content))
        room = max(room, -1)
    return kept


def _bytes(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    written = bytearray()
    while number > 0x7F:
        written.append((number & 0x7F) | 0x80)
        number >>= 7
    return bytes([*written, number])
