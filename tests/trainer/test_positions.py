"""How often a position is looked at: from the setting, or as explored slots tell (docs/propensities.md section 4)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from trainer.exposure import Exposure
from trainer.learner import Learner
from trainer.positions import BEYOND, MIN_EXAMINATION, PLACES, UNKNOWN, examination, explored_factors
from trainer.settings import TrainerSettings
from trainer.slots import Slots

NETWORK = ModelSettings(max_length=4, units=8, blocks=1, dropout=0.0)

counts = st.lists(st.floats(0.0, 1e6), min_size=len(PLACES), max_size=len(PLACES))


def test_without_clicks_on_explored_slots_the_setting_alone_counts() -> None:
    factors = Slots().examination_factors(bias=0.5)

    assert factors == pytest.approx([1.0] * len(PLACES))


def test_where_explored_items_are_clicked_tells_how_often_a_position_is_looked_at() -> None:
    theta_K = np.array([1.0, 0.9, 0.8, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    shown = [20_000.0] * 10 + [0.0, 0.0]
    clicked = [*(0.1 * theta_K * 20_000.0).tolist(), 0.0, 0.0]

    factors = explored_factors(shown, clicked, bias=0.5)

    found = [examination(place, bias=0.5, factors=factors) for place in range(10)]
    assert found == pytest.approx(theta_K.tolist(), rel=0.05)


@given(shown=counts, clicked=counts, bias=st.floats(0.0, 5.0))
def test_whatever_is_counted_a_position_is_looked_at_with_a_chance(
    shown: list[float], clicked: list[float], bias: float
) -> None:
    factors = explored_factors(shown, clicked, bias=bias)

    found = [examination(place, bias=bias, factors=factors) for place in range(UNKNOWN)]
    assert all(MIN_EXAMINATION <= theta <= 1.0 + 1e-9 for theta in found)
    assert factors[UNKNOWN] == 1.0


def test_positions_beyond_those_told_apart_are_corrected_alike_and_an_unknown_one_not_at_all() -> None:
    factors = (1.0,) * BEYOND + (0.5, 1.0)

    assert examination(399, bias=0.1, factors=factors) == pytest.approx(0.5 * examination(399, bias=0.1))
    assert np.isnan(examination(None, bias=0.1, factors=factors))


@pytest.mark.parametrize(("positions_from", "expected"), [("setting", 1.0), ("explored", 2.0)])
def test_a_learner_takes_theta_from_where_the_settings_say(positions_from: str, expected: float) -> None:
    """Explored slots were clicked twice as often at the first position; by the setting all are looked at alike."""
    settings = TrainerSettings.model_validate(
        {"positions_from": positions_from, "position_bias": 0.0, "propensity_cap": 100.0, "flood_window": 10**6}
    )
    learner = Learner(NETWORK, settings)
    learner.learn([slate(number, clicked=0 if number % 3 else 1) for number in range(3_000)])

    learner.learn([click(0), click(1)])

    first, second = learner.weigher.weigh([click(0), click(1)], exposure=Exposure(window=10)).weight_N
    assert second / first == pytest.approx(expected, rel=0.02)


def slate(offset: int, *, clicked: int) -> SlateExample:
    items = tuple(
        ShownItem(item, slot, 0.1, "exact", "explore", None, clicked=slot == clicked) for slot, item in enumerate("bc")
    )
    return SlateExample(ExampleId("impressions", 0, offset, 0), f"user-{offset}", ("a",), "r", "p", items, 1, 1)


def click(position: int) -> ClickExample:
    served = Served("p", "r", position, 0.1, "exact", "exploit")
    return ClickExample(ExampleId("clicks", 0, position, 0), "u", ("a",), "b", 1, 1, served)
