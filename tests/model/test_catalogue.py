"""Ids and rows stay a bijection, whatever is admitted, evicted, retired, written and read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.catalogue import PADDING, SMALLEST_CAPACITY, Catalogue

MAX_ITEMS = 5
item_ids = st.text(alphabet="abcdefgh", min_size=1, max_size=1)


class CatalogueMachine(RuleBasedStateMachine):
    """The catalogue beside the simplest thing that could be right: a list of ids, the most recently used last."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = Catalogue(max_items=MAX_ITEMS, half_life_clicks=10.0)
        self.used: list[str] = []
        self.expected_fresh: set[int] = set()

    @rule(item_id=item_ids)
    def admit(self, item_id: str) -> None:
        known = item_id in self.used
        if known:
            self.used.remove(item_id)
        elif len(self.used) == MAX_ITEMS:
            evicted = self.used.pop(0)
            self.expected_fresh.discard(self.catalogue.row_of(evicted))
        self.used.append(item_id)

        row = self.catalogue.admit(item_id)

        if not known:
            self.expected_fresh.add(row)

    @rule(item_id=item_ids)
    def retire(self, item_id: str) -> None:
        self.expected_fresh.discard(self.catalogue.row_of(item_id))
        if item_id in self.used:
            self.used.remove(item_id)

        self.catalogue.retire(item_id)

    @rule(ids=st.lists(item_ids))
    def count(self, ids: list[str]) -> None:
        self.catalogue.count_clicks(self.catalogue.rows_of(ids))

    @rule()
    def take_fresh_rows(self) -> None:
        assert set(self.catalogue.take_fresh_rows().tolist()) == self.expected_fresh
        self.expected_fresh = set()

    @precondition(lambda self: not self.expected_fresh)
    @rule()
    def write_and_read(self) -> None:
        document = self.catalogue.to_document()

        self.catalogue = Catalogue.from_document(document)

        assert self.catalogue.to_document() == document

    @invariant()
    def ids_and_rows_are_a_bijection(self) -> None:
        rows = self.catalogue.rows_of(self.used)
        assert PADDING not in rows
        assert sorted(rows.tolist()) == self.catalogue.live_rows().tolist()
        assert [self.catalogue.item_of(row) for row in rows.tolist()] == self.used
        assert len(self.catalogue) == len(self.used) <= MAX_ITEMS

    @invariant()
    def rows_are_bounded(self) -> None:
        assert self.catalogue.size <= MAX_ITEMS + 1
        assert len(self.catalogue.live_mask()) == self.catalogue.size


TestCatalogueMachine = CatalogueMachine.TestCase


def catalogue_of(*item_ids: str, max_items: int = 100, half_life_clicks: float = 10.0) -> Catalogue:
    catalogue = Catalogue(max_items=max_items, half_life_clicks=half_life_clicks)
    for item_id in item_ids:
        catalogue.admit(item_id)
    return catalogue


def test_an_unknown_item_is_padding() -> None:
    catalogue = catalogue_of("a")

    assert catalogue.row_of("nobody knows") == PADDING
    assert catalogue.rows_of(["nobody", "a"]).tolist() == [PADDING, 1]


@pytest.mark.parametrize("row", [PADDING, -1, 2, 10_000])
def test_a_row_without_an_item_has_no_id(row: int) -> None:
    with pytest.raises(LookupError, match="holds no item"):
        catalogue_of("a").item_of(row)


def test_the_least_recently_admitted_item_goes_and_its_row_is_used_again() -> None:
    catalogue = catalogue_of("a", "b", max_items=2)
    catalogue.take_fresh_rows()
    catalogue.admit("a")

    row = catalogue.admit("c")

    assert catalogue.row_of("b") == PADDING
    assert row == 2
    assert catalogue.take_fresh_rows().tolist() == [2]


def test_lowering_the_bound_takes_effect_with_the_next_admission() -> None:
    catalogue = catalogue_of("a", "b", "c")

    catalogue.max_items = 2
    catalogue.admit("d")

    assert [catalogue.row_of(item_id) != PADDING for item_id in "abcd"] == [False, False, True, True]


def test_a_reused_row_starts_with_no_clicks() -> None:
    catalogue = catalogue_of("a", max_items=1)
    catalogue.count_clicks(np.array([1, 1]))

    row = catalogue.admit("b")

    assert catalogue.click_counts()[row] == 0
    assert catalogue.recent_click_counts()[row] == 0.0


def test_a_click_counts_half_after_the_half_life() -> None:
    catalogue = catalogue_of("a", "b", half_life_clicks=4.0)
    catalogue.count_clicks(np.array([1]))

    catalogue.count_clicks(np.array([2, 2, 2, 2]))

    assert catalogue.recent_click_counts().tolist() == pytest.approx([0.0, 0.5, 4.0])
    assert catalogue.click_counts().tolist() == [0, 1, 4]


def test_decayed_counts_survive_many_half_lives() -> None:
    catalogue = catalogue_of("a", "b", half_life_clicks=1.0)

    for _ in range(2_000):
        catalogue.count_clicks(np.array([1]))
    catalogue.count_clicks(np.array([2]))

    assert catalogue.recent_click_counts().tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_clicks_on_unknown_items_are_not_counted() -> None:
    catalogue = catalogue_of("a")

    catalogue.count_clicks(np.array([PADDING, 1, PADDING]))

    assert catalogue.click_counts().tolist() == [0, 1]


def test_capacity_doubles_and_keeps_what_was_counted() -> None:
    catalogue = catalogue_of("first", max_items=10 * SMALLEST_CAPACITY)
    catalogue.count_clicks(np.array([1]))
    assert catalogue.capacity == SMALLEST_CAPACITY

    for index in range(SMALLEST_CAPACITY):
        catalogue.admit(str(index))

    assert catalogue.capacity == 2 * SMALLEST_CAPACITY
    assert catalogue.click_counts()[1] == 1


def test_stale_rows_must_be_taken_before_the_catalogue_is_written() -> None:
    with pytest.raises(AssertionError, match="take_fresh_rows"):
        catalogue_of("a").to_document()


@given(raw=st.binary())
def test_garbage_is_no_catalogue(raw: bytes) -> None:
    with pytest.raises(ValueError, match="use another checkpoint"):
        Catalogue.from_document(raw)


def test_a_catalogue_whose_rows_repeat_is_refused() -> None:
    catalogue = catalogue_of("a", "b")
    catalogue.take_fresh_rows()
    document = catalogue.to_document()

    with pytest.raises(ValueError, match="contradict"):
        Catalogue.from_document(document.replace(b"\x02" + b"\0" * 7, b"\x01" + b"\0" * 7, 1))


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Catalogue(max_items=0, half_life_clicks=1.0)
