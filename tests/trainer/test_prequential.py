"""Predict, then learn: the same questions for every ranker."""

from __future__ import annotations

import math

import numpy as np
import pytest
from prometheus_client import REGISTRY

from model.catalogue import PADDING
from trainer.baselines import Events, Popular
from trainer.metrics import observe_foresight
from trainer.prequential import CUT, MISS, RANKERS, USER_LENGTHS, Asked, Guess, Prequential, reciprocals
from trainer.settings import TrainerSettings

HOUR_MS = 3_600_000
NOON_MS = 472_222 * HOUR_MS


def prequential(**settings: float) -> Prequential:
    return Prequential(TrainerSettings.model_validate(settings), capacity=64)


def judge(
    measure: Prequential,
    *events: tuple[int, ...],
    ranks: list[int],
    served: list[bool] | None = None,
    at_ms: int = NOON_MS,
    weight: float = 1.0,
) -> None:
    """Of each event, the items that the user has and the one clicked."""
    count_R = np.zeros(64)
    count_R[20:32] = [2.0] + [1.0] * 11
    width = max(len(event) for event in events) - 1
    histories = [(*[PADDING] * (width + 1 - len(event)), *event[:-1]) for event in events]
    measure.judge(
        Asked(
            Events(np.array(histories), np.array([event[-1] for event in events])),
            served_N=np.array(served or [False] * len(events)),
            user_N=np.arange(len(events)),
            at_ms_N=np.full(len(events), at_ms),
            weight=weight,
        ),
        Guess(np.array(ranks), np.full((len(events), CUT), PADDING)),
        popular=Popular(count_R),
    )


def learn(measure: Prequential, *events: tuple[int, int], at_ms: int = NOON_MS) -> None:
    last_N, target_N = np.array(events).T
    measure.learn(Events(last_N[:, None], target_N), at_ms_N=np.full(len(events), at_ms))


def test_the_first_ten_count_and_higher_ones_count_more() -> None:
    measure = prequential()

    judge(measure, (1, 2), (1, 3), (1, 4), (1, 5), ranks=[0, 2, 9, 10])

    assert measure.moving("sasrec").hr10 == 0.75
    assert measure.moving("sasrec").ndcg10 == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(11)) / 4)
    assert measure.moving("sasrec").mrr == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4)


def test_an_item_that_the_catalogue_does_not_hold_is_a_miss_for_every_ranker() -> None:
    measure = prequential()

    judge(measure, (1, PADDING), ranks=[0])

    assert [measure.moving(ranker) for ranker in RANKERS] == [(1, 0.0, 0.0, 0.0)] * 3


def test_an_item_that_the_user_has_is_no_question_to_any_ranker() -> None:
    measure = prequential()

    judge(measure, (1, 1), (1, 2), ranks=[0, 0])

    assert [measure.moving(ranker).events for ranker in RANKERS] == [1] * 3


def test_organic_and_served_clicks_are_told_apart() -> None:
    measure = prequential()

    judge(measure, (1, 2), (1, 3), (1, 4), ranks=[0, MISS, MISS], served=[False, True, True])

    assert measure.moving("sasrec", "organic") == (1, 1.0, 1.0, 1.0)
    assert measure.moving("sasrec", "served") == (2, 0.0, 0.0, 0.0)
    assert measure.cumulative("sasrec", "served").events == 2
    assert measure.cumulative("sasrec").hr10 == pytest.approx(1 / 3)


def test_the_window_moves_and_the_sums_stay() -> None:
    measure = prequential(metric_window=2)

    judge(measure, (1, 2), (1, 3), (1, 4), ranks=[0, MISS, MISS])

    assert measure.moving("sasrec") == (2, 0.0, 0.0, 0.0)
    assert measure.cumulative("sasrec").hr10 == pytest.approx(1 / 3)


def test_what_is_older_than_the_window_by_event_time_is_out() -> None:
    measure = prequential(metric_window_seconds=60)

    judge(measure, (1, 2), ranks=[0])
    judge(measure, (1, 3), ranks=[MISS], at_ms=NOON_MS + 59_000)
    judge(measure, (1, 4), ranks=[MISS], at_ms=NOON_MS + 61_000)
    judge(measure, (1, 5), ranks=[0], at_ms=NOON_MS)

    assert measure.moving("sasrec").events == 2
    assert measure.moving("sasrec").hr10 == 0.0
    assert measure.cumulative("sasrec").events == 4


def test_clicks_of_a_sample_stand_for_those_that_were_not_asked_about() -> None:
    measure = prequential()

    judge(measure, (1, 2), ranks=[0], weight=3.0)
    judge(measure, (1, 3), ranks=[MISS])

    assert measure.moving("sasrec").hr10 == 0.75
    assert measure.asked() == (2, 4.0)
    assert measure.cumulative("sasrec").events == 4


def test_clicks_are_told_apart_by_the_age_of_the_item() -> None:
    measure = prequential()
    learn(measure, (1, 2), at_ms=NOON_MS)
    learn(measure, (1, 2), at_ms=NOON_MS + 9 * HOUR_MS)

    judge(measure, (1, 2), (1, 3), (1, PADDING), ranks=[0, MISS, MISS], at_ms=NOON_MS + HOUR_MS // 2)
    judge(measure, (1, 2), ranks=[1], at_ms=NOON_MS + 10 * HOUR_MS)

    assert measure.moving("sasrec", "item_new").events == 2
    assert measure.moving("sasrec", "item_hour") == (1, 1.0, 1.0, 1.0)
    assert measure.moving("sasrec", "item_day").events == 1
    assert measure.moving("sasrec", "item_older").events == 0


def test_an_item_in_the_row_of_another_is_new() -> None:
    measure = prequential()
    learn(measure, (1, 2))

    measure.forget(np.array([2]))
    judge(measure, (1, 2), ranks=[0], at_ms=NOON_MS + HOUR_MS)

    assert measure.moving("sasrec", "item_new").events == 1


def test_clicks_are_told_apart_by_how_much_is_known_of_the_user() -> None:
    measure = prequential()

    judge(measure, (2,), (1, 2), (*range(1, 6), 9), (*range(1, 21), 30), ranks=[MISS, 0, 0, 1])

    assert [measure.moving("sasrec", kind).events for kind in USER_LENGTHS] == [1, 1, 1, 1]
    assert measure.moving("sasrec", "user_none").hr10 == 0.0


def test_coverage_is_what_stood_in_a_list_of_the_window() -> None:
    measure = prequential(metric_window_seconds=60)

    judge(measure, (1, 2), ranks=[0])

    assert measure.coverage("popular", items=20) == 0.5
    assert measure.coverage("sasrec", items=20) == 0.0
    judge(measure, (*range(20, 32), 2), ranks=[0], at_ms=NOON_MS + HOUR_MS)
    assert measure.coverage("popular", items=20) == 0.0


def test_the_lead_over_a_baseline_is_taken_click_by_click() -> None:
    measure = prequential()

    judge(measure, (1, 20), (1, 40), (1, 41), ranks=[0, 0, MISS])

    lead = next(found for found in measure.leads() if (found.over, found.kind) == ("popular", "all")).estimate
    assert lead.value == pytest.approx(1 / 3)
    assert -1.0 <= lead.low < lead.value < lead.high <= 1.0


def test_every_kind_of_clicks_that_there_is_has_figures_with_their_bounds() -> None:
    measure = prequential()
    judge(measure, (1, 2), (1, 3), ranks=[0, MISS], served=[True, False])

    figures = list(measure.figures())

    assert {figure.kind for figure in figures} == {"all", "organic", "served", "item_new", "user_few"}
    assert len(figures) == 5 * 3 * len(RANKERS)
    assert all(figure.estimate.low <= figure.estimate.value <= figure.estimate.high for figure in figures)


def test_a_miss_has_no_reciprocal() -> None:
    assert reciprocals(np.array([0, 3, MISS])).tolist() == [1.0, 0.25, 0.0]


def test_a_checkpoint_from_before_the_window_was_one_of_time_is_read() -> None:
    measure, resumed = prequential(), prequential()
    learn(measure, (1, 2))
    transitions = {name: array for name, array in measure.arrays().items() if name.startswith("transitions_")}
    totals = np.zeros((2, 3, len(RANKERS)))
    totals[0, :, 0] = [4.0, 2.0, 1.0]

    resumed.restore(
        transitions
        | {"totals": totals, "window_rank": np.zeros((1, 3), dtype=np.int64), "window_served": np.zeros(1, np.bool_)}
    )

    assert resumed.cumulative("sasrec") == (4, 0.5, 0.25, 0.0)
    assert resumed.moving("sasrec").events == 0
    judge(resumed, (1, 2), ranks=[0])
    assert resumed.moving("sasrec", "item_older").events == 1


def test_the_baselines_foresee_what_they_have_learnt() -> None:
    measure = prequential()
    learn(measure, *((1, item) for item in range(20, 32)))
    learn(measure, (1, 20))

    judge(measure, (1, 20), (5, 20), (1, 40), ranks=[MISS, MISS, MISS])

    assert measure.moving("transitions").hr10 == measure.moving("popular").hr10 == pytest.approx(2 / 3)


def test_measuring_goes_on_from_the_arrays_of_a_checkpoint() -> None:
    measure, resumed = prequential(), prequential()
    judge(measure, (1, 2), (1, 3), ranks=[0, MISS], served=[True, False])
    learn(measure, (1, 2), (1, 3))

    resumed.restore(measure.arrays())

    for each in (measure, resumed):
        judge(each, (1, 3), ranks=[4])
    for name, array in measure.arrays().items():
        assert resumed.arrays()[name].tolist() == array.tolist()


def test_what_the_window_no_longer_has_is_shown_as_no_number() -> None:
    measure = prequential(metric_window_seconds=60)
    judge(measure, (1, 2), ranks=[0], served=[True])
    observe_foresight(measure, items=20)
    judge(measure, (1, 3), (1, 4), ranks=[0, MISS], at_ms=NOON_MS + HOUR_MS)

    observe_foresight(measure, items=20)

    assert shown("sasrec_prequential", metric="hr10", ranker="sasrec", clicks="organic", bound="value") == 0.5
    assert math.isnan(shown("sasrec_prequential", metric="hr10", ranker="sasrec", clicks="served", bound="value"))
    assert shown("sasrec_prequential_hr10", ranker="sasrec") == 0.5
    assert shown("sasrec_prequential_clicks", clicks="served") == 0.0
    assert shown("sasrec_prequential_lead", over="popular", clicks="all", bound="value") > 0.0


def shown(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None
    return value
