"""docs/propensities.md section 4, term (b), row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.examples import ClickExample, ExampleId, Served, ShownItem, SlateExample
from trainer.exposure import Exposure
from trainer.settings import TrainerSettings
from trainer.weights import LARGEST_CAP, Evidence, Weigher, effective_sample_size, largest_cap, outcome_of

FLAT = TrainerSettings(position_bias=0.0, propensity_cap=1_000.0)
"""No position correction, a cap that nothing reaches."""
SMALLEST = 5e-324
"""Of the floats above zero; one over it is infinite."""


def served(propensity: float | None = 0.1, *, kind: str = "exact", source: str = "exploit", **more: object) -> Served:
    fields = {"policy": "softmax", "request_id": "r", "position": None, "propensity": propensity} | more
    return Served(**fields, propensity_kind=kind, source=source)  # type: ignore[arg-type]


def click(how: Served | None) -> ClickExample:
    return ClickExample(ExampleId("clicks", 0, 0, 0), "u", ("a",), "b", 1_700_000_000_000, 1_700_000_000_000, how)


def weights(*clicks: Served | None, settings: TrainerSettings = FLAT, exposure: Exposure | None = None) -> list[float]:
    weighed = Weigher(settings).weigh([click(how) for how in clicks], exposure=exposure or Exposure(window=100))
    return [float(weight) for weight in weighed.weight_N]


def test_an_organic_click_weighs_one_beside_any_served_clicks() -> None:
    assert weights(None, served(0.001), None)[::2] == [1.0, 1.0]


def test_served_clicks_weigh_in_proportion_to_one_over_their_propensity_and_one_on_average() -> None:
    assert weights(served(0.1), served(0.5)) == pytest.approx([10 / 6, 2 / 6])


def test_the_cap_bounds_the_weight_of_an_exact_propensity() -> None:
    capped = weights(served(0.001), served(0.5), settings=TrainerSettings(position_bias=0.0, propensity_cap=8.0))

    assert capped[0] / capped[1] == pytest.approx(8 / 2)


def test_an_estimated_propensity_reaches_half_the_cap() -> None:
    settings = TrainerSettings(position_bias=0.0, propensity_cap=8.0)

    capped = weights(served(0.001, kind="estimated"), served(0.5), settings=settings)

    assert capped[0] / capped[1] == pytest.approx(4 / 2)


def test_an_unknown_propensity_is_the_share_of_that_recommenders_slates_that_showed_the_item() -> None:
    exposure = Exposure(window=100)
    for number in range(18):
        exposure.observe(slate(policy="theirs", items=("b",) if number < 4 else ("c",)))

    (theirs, ours) = weights(served(None, kind="none", policy="theirs"), served(0.5), exposure=exposure)

    assert theirs / ours == pytest.approx(4 / 2)


def test_a_pinned_item_teaches_nothing_against_the_catalogue() -> None:
    assert weights(served(1.0, source="fixed")) == [0.0]


@pytest.mark.parametrize("broken", [None, math.nan, 0.0, -0.1, 1.1, math.inf])
def test_a_promised_propensity_that_is_none_teaches_nothing_and_is_counted(broken: float | None) -> None:
    result = Weigher(FLAT).weigh([click(served(broken))], exposure=Exposure(window=100))

    assert result.weight_N.tolist() == [0.0]
    assert result.outcomes == {"invalid": 1}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (served(None, kind="none"), "not_logged"),
        (served(None), "missing"),
        (served(None, kind="estimated"), "missing"),
        (served(math.nan), "not_a_number"),
        (served(0.0), "not_positive"),
        (served(-math.inf), "not_positive"),
        (served(1.0000001), "above_one"),
        (served(math.inf), "above_one"),
    ],
)
def test_what_lacks_a_propensity_is_counted_by_reason(how: Served, reason: str) -> None:
    result = Weigher(FLAT).weigh([click(how), click(served(0.1)), click(None)], exposure=Exposure(window=100))

    assert result.lacks == {reason: 1}


def test_a_pinned_item_lacks_no_propensity() -> None:
    assert not Weigher(FLAT).weigh([click(served(None, source="fixed"))], exposure=Exposure(window=100)).lacks


def test_where_every_recommender_of_the_surface_is_known_the_mixture_counts() -> None:
    """rho * p = 0.5 * 0.1, and the rival shows it with 0.5 * 0.7: together 0.4 (balance heuristic)."""
    mixed = served(0.1, router_probability=0.5, rivals=((0.5, 0.7),))

    both, one = weights(mixed, served(0.8))

    assert both / one == pytest.approx(2.0)


def test_where_one_recommender_is_unknown_the_others_share_its_part() -> None:
    """(0.4 * 0.1 + 0.4 * 0.7) / 0.8 = 0.4: given that one of the two got the request."""
    mixed = served(0.1, router_probability=0.4, rivals=((0.4, 0.7),))

    both, one = weights(mixed, served(0.8))

    assert both / one == pytest.approx(2.0)


def test_a_slot_that_is_seldom_looked_at_weighs_more() -> None:
    settings = TrainerSettings(position_bias=1.0, propensity_cap=1_000.0)

    first, fourth = weights(served(0.1, position=0), served(0.1, position=3), settings=settings)

    assert fourth / first == pytest.approx(4.0)


def test_no_slot_is_taken_to_be_looked_at_by_fewer_than_one_in_twenty() -> None:
    settings = TrainerSettings(position_bias=5.0, propensity_cap=1_000.0)

    first, last = weights(served(0.1, position=0), served(0.1, position=999), settings=settings)

    assert last / first == pytest.approx(20.0)


def test_an_item_known_to_be_seen_needs_no_position_model() -> None:
    weigher = Weigher(TrainerSettings(position_bias=1.0, propensity_cap=1_000.0))
    weigher.weigh([click(served(0.1, position=0)), click(served(0.1, position=3))], exposure=Exposure(window=100))

    assert weigher.position_weight(3, seen=True) == weigher.position_weight(0, seen=True) == pytest.approx(0.625)
    assert weigher.position_weight(3, seen=None) == pytest.approx(0.625 * 4)


def test_the_mean_is_taken_over_the_window_and_not_over_the_micro_batch() -> None:
    weigher = Weigher(TrainerSettings(position_bias=0.0, propensity_cap=1_000.0, weight_window=4))
    exposure = Exposure(window=100)
    weigher.weigh([click(served(0.5))] * 3, exposure=exposure)

    alone = weigher.weigh([click(served(0.1))], exposure=exposure)

    assert alone.weight_N.tolist() == pytest.approx([10 / 4])


def test_a_weigher_goes_on_from_its_window() -> None:
    weigher, exposure = Weigher(TrainerSettings()), Exposure(window=100)
    weigher.weigh([click(served(p, position=3)) for p in (0.5, 0.01, 0.2)], exposure=exposure)

    resumed = Weigher(TrainerSettings(), window=weigher.window)

    then = [click(served(0.05, position=1))]
    assert resumed.weigh(then, exposure=exposure).weight_N == weigher.weigh(then, exposure=exposure).weight_N
    assert resumed.cap == weigher.cap


@given(
    propensities=st.lists(st.floats(1e-6, 1.0) | st.floats(SMALLEST, 1.0), min_size=1, max_size=50),
    share=st.floats(0.05, 1.0),
)
@example(propensities=[SMALLEST], share=0.35)
@example(propensities=[SMALLEST, 0.5, 0.02], share=0.35)
def test_the_cap_is_the_largest_that_keeps_the_effective_sample_size(propensities: list[float], share: float) -> None:
    inverse_N = inverse(propensities)
    evidence = Evidence(inverse_N, np.ones_like(inverse_N), np.ones_like(inverse_N))

    cap = largest_cap(evidence, min_effective_share=share)

    def size(cap: float) -> float:
        return effective_sample_size(evidence.weights(cap=cap, mean_examination=1.0))

    largest = min(LARGEST_CAP, inverse_N.max())
    assert 1.0 <= cap <= largest
    assert cap == 1.0 or size(cap) >= share * len(propensities) * 0.999
    assert cap == largest or size(cap * 1.001) <= share * len(propensities) * 1.001


@pytest.mark.parametrize("tiny", [1e-9, 1e-14, 1e-100, 1e-300, SMALLEST])
def test_one_tiny_propensity_leaves_the_weights_of_all_other_clicks_in_force(tiny: float) -> None:
    weigher, exposure = Weigher(TrainerSettings(position_bias=0.0)), Exposure(window=100)
    usual = np.random.default_rng(1).uniform(0.01, 1.0, 3_000).tolist()
    weigher.weigh([click(served(p)) for p in usual], exposure=exposure)
    before = weigher.weigh([click(served(0.02)), click(served(0.9))], exposure=exposure).weight_N

    (alone,) = weigher.weigh([click(served(tiny))], exposure=exposure).weight_N
    after = weigher.weigh([click(served(0.02)), click(served(0.9))], exposure=exposure).weight_N

    assert after.tolist() == pytest.approx(before.tolist(), rel=0.05)
    assert 1.0 < alone < 100.0
    assert weigher.effective_sample_size() >= 0.35 * 3_000


@pytest.mark.parametrize("cap", [None, 1e308])
def test_weights_of_the_smallest_propensities_there_are_stay_finite(cap: float | None) -> None:
    settings = TrainerSettings(propensity_cap=cap, position_bias=1.0)

    weighed = weights(*[served(SMALLEST, position=19)] * 5, served(0.5, position=0), settings=settings)

    assert np.isfinite(weighed).all()
    assert np.mean(weighed) == pytest.approx(1.0)


def inverse(propensities: Sequence[float]) -> np.ndarray:
    return np.array([1.0 / propensity for propensity in propensities])


def test_kinds_of_clicks_are_told_apart() -> None:
    outcomes: Sequence[str] = [
        outcome_of(how)
        for how in (None, served(), served(kind="estimated"), served(None, kind="none"), served(source="fixed"))
    ]

    assert outcomes == ["organic", "exact", "estimated", "unknown", "fixed"]


def slate(*, policy: str, items: tuple[str, ...]) -> SlateExample:
    shown = tuple(ShownItem(item, None, None, "none", "exploit", None, clicked=False) for item in items)
    return SlateExample(
        ExampleId("impressions", 0, 0, 0), "u", (), "r", policy, shown, 1_700_000_000_000, 1_700_000_000_000
    )
