"""A model is made anew in passes: bounded by their number and by time, at a rate that has come down either way."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.settings import ModelSettings
from trainer.batch import Stretch
from trainer.learner import Learner
from trainer.passes import LAST_RATE, Pass, learn_in_passes, rate_at, window
from trainer.settings import RetrainSettings, TrainerSettings

USERS, ITEMS = 20, 12


def learner() -> Learner:
    fresh = Learner(ModelSettings(max_length=6, units=8), TrainerSettings(learning_rate=0.5))
    fresh.admit(str(row) for row in range(ITEMS))
    return fresh


def stretches(length: int = 5) -> list[Stretch]:
    """Everybody counts: what comes next can be learnt."""
    return [
        Stretch(tuple(str((user + step) % ITEMS) for step in range(length)), (1.0,) * length) for user in range(USERS)
    ]


def passes(settings: RetrainSettings, *, clock: Callable[[], float] = lambda: 0.0) -> list[Pass]:
    return list(learn_in_passes(learner(), stretches(), settings, clock=clock, stop=threading.Event()))


def settings(*, epochs: int, max_seconds: float = 1e9) -> RetrainSettings:
    return RetrainSettings(epochs=epochs, batch_users=8, max_seconds=max_seconds, learning_rate=0.01)


def test_every_pass_is_told_and_the_last_one_ends_the_training() -> None:
    told = passes(settings(epochs=5))

    assert [taught.number for taught in told] == [1, 2, 3, 4, 5]
    assert [taught.progress == 1.0 for taught in told] == [False] * 4 + [True]


def test_what_can_be_foreseen_is_learnt() -> None:
    told = passes(settings(epochs=30))

    assert told[-1].loss < 0.7 * told[0].loss


def test_time_ends_it_too_and_seconds_are_those_of_training() -> None:
    ticks = itertools.count()

    told = passes(settings(epochs=1_000, max_seconds=50.0), clock=lambda: float(next(ticks)))

    assert 1 < len(told) < 1_000
    assert told[-1].progress == 1.0
    assert told[-1].seconds == pytest.approx(50.0, abs=2.0)


def test_a_stop_ends_it_after_the_step_under_way() -> None:
    stop = threading.Event()
    running = learn_in_passes(learner(), stretches(), settings(epochs=9), clock=lambda: 0.0, stop=stop)
    next(running)

    stop.set()

    assert list(running) == []


def test_afterwards_the_learner_has_its_own_rate_again() -> None:
    one = learner()

    for _ in learn_in_passes(one, stretches(), settings(epochs=2), clock=lambda: 0.0, stop=threading.Event()):
        assert one.optimiser.learning_rate != one.settings.learning_rate

    assert one.optimiser.learning_rate == one.settings.learning_rate


def test_of_a_long_sequence_the_newest_part_is_learnt_most_often_and_any_other_too() -> None:
    one = learner()
    whole = Stretch(tuple(str(row) for row in range(ITEMS)), (1.0,) * ITEMS)

    read = [window(one, whole) for _ in range(400)]

    newest = sum(part.items[-1] == whole.items[-1] for part in read) / len(read)
    assert newest == pytest.approx(0.5 + 0.5 / 6, abs=0.1)
    assert len(set(read)) == 6
    assert {(len(part.items), len(part.weights)) for part in read} == {(7, 7)}


def test_a_short_sequence_is_learnt_as_it_is() -> None:
    (short, *_) = stretches(length=4)

    assert {window(learner(), short) for _ in range(8)} == {short}


@given(st.floats(0.0, 1.0))
def test_the_rate_never_leaves_its_bounds(progress: float) -> None:
    assert LAST_RATE - 1e-9 <= rate_at(progress, peak=1.0) <= 1.0


def test_the_rate_rises_at_first_and_ends_low() -> None:
    assert rate_at(0.0, peak=1.0) == LAST_RATE
    assert rate_at(0.02, peak=1.0) == pytest.approx(1.0)
    assert rate_at(0.51, peak=1.0) == pytest.approx((1 + LAST_RATE) / 2)
    assert rate_at(1.0, peak=1.0) == pytest.approx(LAST_RATE)
