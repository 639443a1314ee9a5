"""What a compressed batch may become in memory."""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Callable

import aiokafka.codec
import lz4.frame
import pytest
import zstandard
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from stream import codecs
from stream.codecs import AIOKAFKA, KAFKA_PYTHON, LIMIT_BYTES, Bounded, bound_decompression
from stream.dead_letters import CUT_FROM

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip_decode": lambda raw: gzip.compress(raw, 1),
    "lz4_decode": lz4.frame.compress,
    "zstd_decode": zstandard.compress,
}
HEAD_BYTES = 61


def batch(*records: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]) -> bytes:
    """The records of an uncompressed batch, as a producer writes them; its head is left out."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 31)
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, 1_700_000_000_000 + offset, key, value, headers)
    return bytes(builder.build())[HEAD_BYTES:]


def read(records: bytes, count: int) -> list[tuple[int, bytes | None, bytes | None, dict[str, bytes | None]]]:
    """What a consumer reads from such a batch."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 31)
    for offset in range(count):
        builder.append(offset, 1_700_000_000_000, None, None, [])
    head = bytes(builder.build())[:HEAD_BYTES]
    return [
        (one.offset, one.key, one.value, dict(one.headers)) for one in DefaultRecordBatch(bytearray(head + records))
    ]


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("module", [*KAFKA_PYTHON, *AIOKAFKA])
def test_a_bomb_keeps_its_records_and_loses_what_does_not_fit(module: str, codec: str) -> None:
    bound_decompression([module])
    decode = getattr(importlib.import_module(module), codec)
    records = batch((b"a", b"whole", [("h", b"1")]), (b"b", b"{" + bytes(LIMIT_BYTES), []), (None, None, []))

    first, bomb, last = read(decode(COMPRESS[codec](records)), 3)

    assert first == (0, b"a", b"whole", {"h": b"1"})
    assert last == (2, None, None, {})
    assert (bomb[:2], len(bomb[2] or b"")) == ((1, b"b"), codecs.KEPT_BYTES)
    assert bomb[3] == {CUT_FROM: str(LIMIT_BYTES + 1).encode()}


@pytest.mark.parametrize("codec", COMPRESS)
def test_below_the_limit_every_byte_is_as_it_was(codec: str) -> None:
    bound_decompression(AIOKAFKA)
    decode = getattr(importlib.import_module(AIOKAFKA[-1]), codec)

    for size in (0, 1_000, LIMIT_BYTES // 4):
        raw = bytes(range(256)) * (size // 256)
        assert decode(COMPRESS[codec](raw)) == raw


def test_what_several_compressors_wrote_one_after_the_other_is_read_whole() -> None:
    raw = bytes(range(256)) * 1_000

    assert b"".join(codecs._gzip(gzip.compress(raw) + gzip.compress(raw))) == raw + raw
    assert b"".join(codecs._zstd(zstandard.compress(raw) + zstandard.compress(raw))) == raw + raw
    assert b"".join(codecs._lz4(aiokafka.codec.lz4_encode(raw))) == raw


TEXTS = st.none() | st.binary(max_size=3_000)


@given(
    records=st.lists(
        st.tuples(TEXTS, TEXTS, st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=300)), max_size=4)),
        min_size=1,
        max_size=6,
    ),
    piece=st.integers(1, 700),
)
def test_records_that_are_small_enough_are_written_anew_as_they_were(
    records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]], piece: int
) -> None:
    raw = batch(*records)
    pieces = (raw[at : at + piece] for at in range(0, len(raw), piece))

    rewritten = read(codecs._rewritten(pieces), len(records))

    for (key, value, headers), (_, key_read, value_read, headers_read) in zip(records, rewritten, strict=True):
        assert (key_read, value_read) == (key and key[:1_024], value and value[:1_024])
        is_cut = max(len(key or b""), len(value or b"")) > codecs.KEPT_BYTES
        assert {**dict(headers), CUT_FROM: headers_read.get(CUT_FROM)} == {CUT_FROM: None, **headers_read}
        assert (CUT_FROM in headers_read) == is_cut


def test_bounding_twice_bounds_once() -> None:
    module = importlib.import_module(KAFKA_PYTHON[0])
    bound_decompression(KAFKA_PYTHON)
    once = module.zstd_decode
    bound_decompression(KAFKA_PYTHON)

    assert isinstance(once, Bounded)
    assert module.zstd_decode is once
