from __future__ import annotations

import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.packing import pack, unpack

numbers = st.integers(0, 10**20).map(str)
ids = st.one_of(
    st.lists(st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text), max_size=60),
    st.tuples(st.sampled_from(["", "item-", "ä", "sku/0", "x" * 300]), st.lists(numbers, max_size=60)).map(
        lambda drawn: [drawn[0] + number for number in drawn[1]]
    ),
    st.lists(st.uuids().map(str), max_size=60),
    st.lists(st.uuids().map(lambda drawn: drawn.hex), max_size=60),
    st.lists(st.sampled_from(["ab", "a-", "-a", "--", "0a", "aaff", "f", "007", "7"]), max_size=60),
)


@given(ids)
@example(["item-"])
@example(["1" * 256])
@example(["-" * 256])
@example(["a", "a"])
@example(["١٢٣"])
@example(["item-1", "item-12", "item-"])
def test_ids_come_back_as_they_were(texts: list[str]) -> None:
    assert unpack(pack(texts)) == tuple(texts)


def test_fifty_numbered_items_take_three_bytes_each() -> None:
    assert len(pack([f"item-{number}" for number in range(10_000, 10_050)])) <= 50 * 3 + 7


def test_fifty_uuids_take_sixteen_bytes_each() -> None:
    assert len(pack([str(uuid.UUID(int=number * 7**40)) for number in range(50)])) <= 50 * 16 + 7


def test_bytes_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="does not know"):
        unpack(b"\x09\x00abc")
