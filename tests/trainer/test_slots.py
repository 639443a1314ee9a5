"""docs/propensities.md section 5: what was shown and clicked lately, by source and position."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.examples import ExampleId, ShownItem, SlateExample
from tests.trainer.clicks import shown
from trainer.exposure import Exposure, gini
from trainer.positions import BEYOND, PLACES, POSITIONS, UNKNOWN, place_of
from trainer.slots import Slots


def slate(*items: ShownItem, correction: bool = False, policy: str = "p") -> SlateExample:
    return SlateExample(ExampleId("impressions", 0, 0, 0), "u", (), "r", policy, items, 1, 1, correction)


def cells(slots: Slots) -> dict[tuple[str, str], tuple[float, float]]:
    return {(cell.source, cell.place): (cell.shown, cell.clicked) for cell in slots.cells() if cell.shown}


def test_slots_are_counted_by_why_and_where_they_were_shown() -> None:
    slots = Slots()

    slots.observe(slate(shown(clicked=True), shown(position=1, source="explore"), shown(position=1, source="fixed")))
    slots.observe(slate(shown(), shown(position=POSITIONS + 7), shown(position=None, clicked=True)))

    assert cells(slots) == {
        ("exploit", "0"): (2.0, 1.0),
        ("explore", "1"): (1.0, 0.0),
        ("fixed", "1"): (1.0, 0.0),
        ("exploit", "10+"): (1.0, 0.0),
        ("exploit", "unknown"): (1.0, 1.0),
    }


def test_a_correction_adds_its_click_and_no_slot() -> None:
    slots = Slots()
    slots.observe(slate(shown(), shown(position=1)))

    slots.observe(slate(shown(), shown(position=1, clicked=True), correction=True))

    assert cells(slots) == {("exploit", "0"): (1.0, 0.0), ("exploit", "1"): (1.0, 1.0)}


def test_an_explored_slot_is_set_against_an_exploited_one() -> None:
    slots = Slots()
    for number in range(8):
        explored = shown(source="explore", clicked=number == 0)
        slots.observe(slate(shown(clicked=number % 2 == 0), shown(position=1, clicked=number % 2 == 0), explored))

    assert slots.explored_over_exploited() == pytest.approx((1 / 8) / (1 / 2))


def test_where_nothing_was_explored_its_price_is_not_known() -> None:
    slots = Slots()
    slots.observe(slate(shown(clicked=True)))

    assert math.isnan(slots.explored_over_exploited())


@given(positions=st.lists(st.none() | st.integers(-3, 10_000), max_size=60), window=st.integers(1, 20))
def test_counts_stay_bounded_whatever_is_shown(positions: list[int | None], window: int) -> None:
    slots = Slots(window)

    for position in positions:
        slots.observe(slate(shown(position=position, clicked=True)))

    assert slots.slates <= window
    assert len(list(slots.cells())) == 3 * len(PLACES)
    assert sum(cell.shown for cell in slots.cells()) <= window
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(slots), type=Slots) == slots


def test_a_window_forgets() -> None:
    slots = Slots(4)
    for _ in range(400):
        slots.observe(slate(shown(clicked=True)))

    for _ in range(40):
        slots.observe(slate(shown()))

    assert next(slots.cells()).rate < 0.01


def test_positions_beyond_those_told_apart_share_a_place() -> None:
    assert [place_of(position) for position in (0, POSITIONS - 1, POSITIONS, 499, None)] == [
        0,
        POSITIONS - 1,
        BEYOND,
        BEYOND,
        UNKNOWN,
    ]


def test_the_spread_of_what_all_recommenders_served_counts_what_nobody_served() -> None:
    exposure = Exposure(window=100)
    exposure.observe(slate(shown("a"), shown("b")))
    exposure.observe(slate(shown("a"), shown("b"), policy="another"))

    spread = exposure.spread(items=4)

    assert spread is not None
    assert spread.coverage == 0.5
    assert spread.gini == pytest.approx(0.5)


def test_an_item_that_has_no_row_yet_belongs_to_the_catalogue_once_it_was_shown() -> None:
    exposure = Exposure(window=100)
    exposure.observe(slate(shown("a"), shown("b")))

    assert exposure.spread(items=0) == (1.0, 0.0)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50).filter(any))
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[float]) -> None:
    differences = [abs(one - other) for one in counts for other in counts]

    expected = sum(differences) / len(differences) / 2 / (sum(counts) / len(counts))

    assert gini(np.array(counts)) == pytest.approx(expected, abs=1e-9)
    shown = np.array([count for count in counts if count])
    assert gini(shown, zeros=len(counts) - len(shown)) == pytest.approx(expected, abs=1e-9)
