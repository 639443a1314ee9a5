"""docs/propensities.md section 4, term (a), row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from tests.trainer.clicks import shown
from trainer.exposure import Exposure
from trainer.settings import TrainerSettings
from trainer.slates import collate_slates, lacks_in
from trainer.step import Slates
from trainer.weights import Weigher

ROWS = {"a": 1, "b": 2, "c": 3, "d": 4}


def collated(*items: ShownItem, weigher: Weigher | None = None, context: tuple[str, ...] = ("a",)) -> Slates | None:
    example = SlateExample(ExampleId("clicks", 0, 0, 0), "u", context, "r", "p", items, 1, 1)
    weigher = weigher or Weigher(TrainerSettings(position_bias=0.0))
    return collate_slates([example], rows_of, weigher=weigher, max_length=5)


def rows_of(item_ids: Sequence[str]) -> np.ndarray:
    return np.array([ROWS[item_id] for item_id in item_ids])


def pairs(slates: Slates | None) -> tuple[list[int], list[int]]:
    """Rows of what was liked and of what was passed over."""
    if slates is None:
        return [], []
    return slates.item_SK[slates.clicked_SK].tolist(), slates.item_SK[slates.negative_SK].tolist()


def test_served_and_clicked_stands_against_served_and_not_clicked() -> None:
    assert pairs(collated(shown("b", clicked=True), shown("c"), shown("d"))) == ([2], [3, 4])


def test_where_it_is_known_what_was_seen_nothing_else_was_passed_over() -> None:
    seen = collated(shown("b", clicked=True, seen=True), shown("c", seen=True), shown("d", seen=False))

    assert pairs(seen) == ([2], [3])


@pytest.mark.parametrize(
    "how",
    [
        {"propensity": None, "propensity_kind": "none"},
        {"propensity": 0.2, "propensity_kind": "estimated"},
        {"propensity": None, "propensity_kind": "none", "source": "fixed"},
        {"propensity": 1.0, "source": "fixed"},
    ],
    ids=["unknown", "estimated", "pinned", "pinned, p = 1"],
)
def test_an_unknown_estimated_or_pinned_item_takes_part_on_either_side(how: dict[str, object]) -> None:
    assert pairs(collated(shown("b", clicked=True, **how), shown("c"))) == ([2], [3])
    assert pairs(collated(shown("b", clicked=True), shown("c", **how))) == ([2], [3])


@pytest.mark.parametrize("broken", [None, math.nan, 0.0, -0.1, 1.1])
def test_a_promised_propensity_that_is_none_takes_part_on_neither_side(broken: float | None) -> None:
    assert collated(shown("b", clicked=True, propensity=broken), shown("c")) is None
    assert pairs(collated(shown("b", clicked=True), shown("c", propensity=broken), shown("d"))) == ([2], [4])


def test_items_without_a_propensity_are_counted_by_reason_once_for_each_slate() -> None:
    lacking = (
        shown("a", propensity=None, propensity_kind="none"),
        shown("b", propensity=None, propensity_kind="none", source="fixed"),
        shown("c", propensity=math.nan),
        shown("d", propensity=1.5, clicked=True),
        shown("b", propensity=None),
        shown("a"),
    )
    closed = SlateExample(ExampleId("clicks", 0, 0, 0), "u", ("a",), "r", "p", lacking, 1, 1)

    counted = lacks_in([closed, replace(closed, correction=True)])

    assert counted == {"not_logged": 1, "not_a_number": 1, "above_one": 1, "missing": 1}


def test_a_slate_without_a_click_or_without_a_history_says_nothing() -> None:
    assert collated(shown("b"), shown("c")) is None
    assert collated(shown("b", clicked=True), shown("c"), context=()) is None


def test_in_a_correction_what_was_clicked_before_is_neither_liked_anew_nor_passed_over() -> None:
    late = collated(shown("b", clicked=True), shown("c", clicked_before=True), shown("d"))

    assert pairs(late) == ([2], [4])


def test_the_history_is_the_one_at_request_time_and_the_newest_of_it() -> None:
    slates = collated(shown("b", clicked=True), shown("c"), context=("d", "d", "a", "b", "c", "d", "a"))

    assert slates is not None
    assert slates.row_ST.tolist() == [[1, 2, 3, 4, 1]]


def test_a_clicked_slot_is_corrected_for_its_position_unless_it_is_known_to_be_seen() -> None:
    weigher = Weigher(TrainerSettings(position_bias=1.0))
    served = (Served("p", "r", slot, 0.5, "exact", "exploit") for slot in (0, 1))
    clicks = [ClickExample(ExampleId("clicks", 0, 0, 0), "u", ("a",), "b", 1, 1, how) for how in served]
    weigher.weigh(clicks, exposure=Exposure(window=10))

    unknown = collated(shown("b", clicked=True, position=3), shown("c"), weigher=weigher)
    seen = collated(shown("b", clicked=True, position=3, seen=True), shown("c", seen=True), weigher=weigher)

    assert unknown is not None
    assert seen is not None
    torch.testing.assert_close(unknown.weight_SK[0, 0], torch.tensor(0.75 / 0.25))
    torch.testing.assert_close(seen.weight_SK[0, 0], torch.tensor(0.75))
