"""What a micro-batch leaves in the metrics."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from trainer.learner import Learner
from trainer.metrics import observe_micro_batch, observe_served
from trainer.settings import TrainerSettings
from trainer.weights import Lack


def learner() -> Learner:
    return Learner(ModelSettings(max_length=4, units=8, blocks=1, dropout=0.0), TrainerSettings())


def click(propensity: float | None, *, kind: str = "exact") -> ClickExample:
    served = Served("p", "r", 0, propensity, kind, "exploit")  # type: ignore[arg-type]
    return ClickExample(ExampleId("clicks", 0, 0, 0), "u", ("a",), "b", 1, 1, served)


def slate(*propensities: float | None, clicked: int = 0) -> SlateExample:
    items = tuple(
        ShownItem(f"item-{slot}", slot, propensity, "exact", "exploit", None, clicked=slot == clicked)
        for slot, propensity in enumerate(propensities)
    )
    return SlateExample(ExampleId("impressions", 0, 0, 0), "u", ("a",), "r", "p", items, 1, 1)


def shown(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_served_clicks_and_slots_without_a_propensity_are_counted_by_reason() -> None:
    learns = learner()
    clicks = "sasrec_clicks_without_propensity_total"
    slots = "sasrec_slate_items_without_propensity_total"
    before = {
        reason: (shown(clicks, reason=reason), shown(slots, reason=reason)) for reason in ("missing", "above_one")
    }
    estimated = shown(clicks, reason="not_logged")

    learnt = learns.learn([click(None), click(2.0), click(None, kind="none"), click(0.5), slate(0.5, None, math.inf)])
    observe_micro_batch(learns, learnt)

    for reason, (clicks_before, slots_before) in before.items():
        assert shown(clicks, reason=reason) == clicks_before + 1
        assert shown(slots, reason=reason) == slots_before + 1
    assert shown(clicks, reason="not_logged") == estimated + 1


def test_every_reason_is_shown_before_it_happens_so_that_the_first_time_is_an_increase() -> None:
    for reason in get_args(Lack):
        assert REGISTRY.get_sample_value("sasrec_clicks_without_propensity_total", {"reason": reason}) is not None


def test_the_weights_of_served_clicks_are_a_histogram_and_organic_clicks_are_not_in_it() -> None:
    learns, count, total = learner(), "sasrec_click_weight_count", "sasrec_click_weight_sum"
    before = shown(count), shown(total)

    learnt = learns.learn([click(0.5), click(0.1), replace(click(0.5), served=None)])
    observe_micro_batch(learns, learnt)

    assert shown(count) == before[0] + 2
    assert shown(total) == pytest.approx(before[1] + 2.0)


def test_what_was_served_and_clicked_lately_is_shown_by_source_and_position() -> None:
    learns = learner()

    learns.learn([slate(0.5, 0.5), slate(0.5, 0.5, clicked=1), slate(0.5, clicked=9)])
    observe_served(learns)

    first = {"source": "exploit", "position": "0"}
    assert shown("sasrec_slots_shown", **first) == 3
    assert shown("sasrec_click_rate", **first) == pytest.approx(1 / 3)
    assert shown("sasrec_click_rate", source="exploit", position="1") == 0.5
    assert math.isnan(shown("sasrec_click_rate", source="explore", position="0"))
    assert math.isnan(shown("sasrec_explored_over_exploited_clicks"))
    assert shown("sasrec_served_coverage") == 1.0
    assert shown("sasrec_served_gini") == pytest.approx(0.1)


def test_where_no_slate_has_closed_nothing_is_said_of_them() -> None:
    observe_served(learner())

    assert math.isnan(shown("sasrec_served_coverage"))
    assert math.isnan(shown("sasrec_served_gini"))
