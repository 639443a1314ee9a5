"""Predict, then learn: the same questions for every ranker."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.catalogue import PADDING
from trainer.baselines import Events, Popular
from trainer.prequential import MISS, RANKERS, Prequential
from trainer.settings import TrainerSettings


def prequential(**settings: int) -> Prequential:
    return Prequential(TrainerSettings.model_validate(settings), capacity=64)


def judge(measure: Prequential, *events: tuple[int, int], ranks: list[int], served: list[bool] | None = None) -> None:
    count_R = np.zeros(64)
    count_R[20:32] = [2.0] + [1.0] * 11
    measure.judge(
        Events(np.array([[last] for last, _ in events]), np.array([target for _, target in events])),
        sasrec_rank_N=np.array(ranks),
        served_N=np.array(served or [False] * len(events)),
        popular=Popular(count_R),
    )


def test_the_first_ten_count_and_higher_ones_count_more() -> None:
    measure = prequential()

    judge(measure, (1, 2), (1, 3), (1, 4), (1, 5), ranks=[0, 2, 9, 10])

    assert measure.moving("sasrec").hr10 == 0.75
    assert measure.moving("sasrec").ndcg10 == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(11)) / 4)


def test_an_item_that_the_catalogue_does_not_hold_is_a_miss_for_every_ranker() -> None:
    measure = prequential()

    judge(measure, (1, PADDING), ranks=[0])

    assert [measure.moving(ranker) for ranker in RANKERS] == [(1, 0.0, 0.0)] * 3


def test_an_item_that_the_user_has_is_no_question_to_any_ranker() -> None:
    measure = prequential()

    judge(measure, (1, 1), (1, 2), ranks=[0, 0])

    assert [measure.moving(ranker).events for ranker in RANKERS] == [1] * 3


def test_organic_and_served_clicks_are_told_apart() -> None:
    measure = prequential()

    judge(measure, (1, 2), (1, 3), (1, 4), ranks=[0, MISS, MISS], served=[False, True, True])

    assert measure.moving("sasrec", "organic") == (1, 1.0, 1.0)
    assert measure.moving("sasrec", "served") == (2, 0.0, 0.0)
    assert measure.cumulative("sasrec", "served").events == 2
    assert measure.cumulative("sasrec").hr10 == pytest.approx(1 / 3)


def test_the_window_moves_and_the_sums_stay() -> None:
    measure = prequential(metric_window=2)

    judge(measure, (1, 2), (1, 3), (1, 4), ranks=[0, MISS, MISS])

    assert measure.moving("sasrec") == (2, 0.0, 0.0)
    assert measure.cumulative("sasrec").hr10 == pytest.approx(1 / 3)


def test_the_baselines_foresee_what_they_have_learnt() -> None:
    measure = prequential()
    measure.learn(Events(np.array([[1]] * 12), np.arange(20, 32)))
    measure.learn(Events(np.array([[1]]), np.array([20])))

    judge(measure, (1, 20), (5, 20), (1, 40), ranks=[MISS, MISS, MISS])

    assert measure.moving("transitions").hr10 == measure.moving("popular").hr10 == pytest.approx(2 / 3)


def test_measuring_goes_on_from_the_arrays_of_a_checkpoint() -> None:
    measure, resumed = prequential(), prequential()
    judge(measure, (1, 2), (1, 3), ranks=[0, MISS], served=[True, False])
    measure.learn(Events(np.array([[1], [1]]), np.array([2, 3])))

    resumed.restore(measure.arrays())

    for each in (measure, resumed):
        judge(each, (1, 3), ranks=[4])
    for name, array in measure.arrays().items():
        assert resumed.arrays()[name].tolist() == array.tolist()
