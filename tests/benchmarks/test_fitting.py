"""A run learns, looks, keeps what was best, and says what it cost; who is stopped is judged all the same."""

from __future__ import annotations

import itertools
import threading
from typing import Literal

import numpy as np
import pytest

from benchmarks.fitting import CLOCKS, HALF_HOUR, ClockName, Run, as_dict, fit
from benchmarks.protocol import Split
from benchmarks.recipes import RECIPES, Recipe
from model.settings import ModelSettings
from trainer.settings import RetrainSettings, TrainerSettings

ITEMS = 130


def split() -> Split:
    """Everybody counts by sevens."""
    rng = np.random.default_rng(1)
    starts = rng.integers(ITEMS, size=40)
    return Split(
        [(start + 7 * np.arange(length)) % ITEMS + 1 for start, length in zip(starts, itertools.cycle([6, 9, 14]))],
        ITEMS,
    )


def recipe(*, epochs: int, loss: Literal["bpr", "cross_entropy"] = "bpr") -> Recipe:
    return Recipe(
        ModelSettings(max_length=8, units=16),
        TrainerSettings(loss=loss, learning_rate=0.01),
        RetrainSettings(epochs=epochs, batch_users=8, learning_rate=0.02),
    )


def last(*, epochs: int, loss: Literal["bpr", "cross_entropy"] = "bpr") -> Run:
    (*_, run) = fit("x", recipe(epochs=epochs, loss=loss), split(), seed=3, clock="cpu", stop=threading.Event())
    return run


def test_what_can_be_foreseen_is_foreseen() -> None:
    run = last(epochs=12)

    assert run.finished
    assert run.test is not None
    assert run.test.catalogue.ndcg > 0.5
    assert run.points[-1].passes == 12
    assert [point.passes for point in run.points] == list(range(1, 13))


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = last(epochs=4), last(epochs=4)

    assert first.test == second.test
    assert [point.loss for point in first.points] == [point.loss for point in second.points]


def test_bpr_over_the_whole_catalogue_is_cross_entropy() -> None:
    bpr, cross_entropy = last(epochs=3, loss="bpr"), last(epochs=3, loss="cross_entropy")

    assert [point.loss for point in bpr.points] == [point.loss for point in cross_entropy.points]
    assert bpr.test == cross_entropy.test


def test_who_is_stopped_is_judged_by_what_was_best() -> None:
    stop = threading.Event()
    runs = fit("x", recipe(epochs=4), split(), seed=3, clock="cpu", stop=stop)
    first = next(runs)

    stop.set()
    (*_, end) = runs

    assert end.points == first.points
    assert end.test is not None
    assert not end.finished


def test_who_is_stopped_before_the_first_step_has_learnt_nothing() -> None:
    stop = threading.Event()
    stop.set()

    assert list(fit("x", recipe(epochs=4), split(), seed=3, clock="cpu", stop=stop)) == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_says_by_which_settings_it_was_learnt(name: str) -> None:
    sections = as_dict(RECIPES[name])

    assert sections["trainer"]["loss"] == name
    assert "seed" not in sections["trainer"]


def test_each_way_of_ranking_is_judged_by_the_weights_that_were_best_in_it() -> None:
    run = last(epochs=12)

    assert run.test is not None
    assert run.test_sampled is not None
    assert run.best.validation.ndcg == max(point.validation.ndcg for point in run.points)
    assert run.best_sampled.validation_sampled is not None
    assert run.best_sampled.validation_sampled.hr == max(
        point.validation_sampled.hr for point in run.points if point.validation_sampled
    )
    if run.best is run.best_sampled:
        assert run.test_sampled == run.test.sampled


def test_a_run_is_bounded_by_the_clock_that_was_named() -> None:
    bounded = recipe(epochs=10_000)._replace(
        retrain=RetrainSettings(epochs=10_000, batch_users=8, learning_rate=0.02, max_seconds=0.5)
    )

    runs: dict[ClockName, Run] = {
        clock: list(fit("x", bounded, split(), seed=3, clock=clock, stop=threading.Event()))[-1] for clock in CLOCKS
    }

    assert [run.clock for run in runs.values()] == list(CLOCKS)
    assert runs["wall"].points[-1].wall_seconds >= 0.5
    assert runs["cpu"].points[-1].cpu_seconds >= 0.5
    assert all(run.is_in_half_an_hour and run.test_in_half_an_hour is None for run in runs.values())


def test_a_longer_run_is_also_judged_by_what_it_knew_after_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit("x", recipe(epochs=12), split(), seed=3, clock="cpu", stop=threading.Event())
    first = next(whole)
    monkeypatch.setitem(HALF_HOUR, "cpu", first.points[-1].cpu_seconds)
    (*_, run) = whole
    stop = threading.Event()
    stopped = fit("x", recipe(epochs=12), split(), seed=3, clock="cpu", stop=stop)
    next(stopped)
    stop.set()
    (*_, sooner) = stopped

    assert not run.is_in_half_an_hour
    assert run.test_in_half_an_hour == sooner.test
    assert run.test != sooner.test
