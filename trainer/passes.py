"""Passes over whole sequences, as a model is made anew: in the scheduled retrain and in `benchmarks.accuracy`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trainer.batch import Stretch, collate
from trainer.learner import Learner
from trainer.settings import RetrainSettings
from trainer.step import Micro

WARM_UP = 0.02
"""Share of the training in which the rate rises to its peak."""
LAST_RATE = 0.02
"""The rate at the end, as a share of its peak."""
NEWEST = 0.5
"""How often the newest part of a long sequence is learnt, and not just any part of it."""

Clock = Callable[[], float]


class Pass(NamedTuple):
    """What one pass over all users did."""

    number: int
    """From 1."""
    loss: float
    """Mean over its steps."""
    seconds: float
    """Training time since the first step, by the clock that was given; what the caller does between passes not."""
    progress: float
    """Share of the training that is done; 1 after the last pass."""


def learn_in_passes(
    learner: Learner, stretches: Sequence[Stretch], settings: RetrainSettings, *, clock: Clock, stop: threading.Event
) -> Iterator[Pass]:
    """Learns all sequences again and again, until there were enough passes, time is up or `stop` is set.

    The rate is that of `rate_at`, where progress is the larger of the share of steps and the share of time: whichever
    bound ends the training, the rate has come down by then. Afterwards the learner has its own rate again.
    """
    steps = settings.epochs * math.ceil(len(stretches) / settings.batch_users)
    done, seconds = 0, 0.0
    try:
        for number in range(1, settings.epochs + 1):
            losses: list[float] = []
            began = clock()
            for batch in _batches(stretches, settings.batch_users, learner.rng):
                progress = max(done / steps, (seconds + clock() - began) / settings.max_seconds)
                if stop.is_set() or progress >= 1.0:
                    break
                learner.optimiser.learning_rate = rate_at(progress, peak=settings.learning_rate)
                losses.append(_learn(learner, batch))
                done += 1
            seconds += clock() - began
            progress = max(done / steps, seconds / settings.max_seconds)
            is_last = stop.is_set() or progress >= 1.0
            if losses:
                yield Pass(number, float(np.mean(losses)), seconds, 1.0 if is_last else progress)
            if is_last:
                return
    finally:
        learner.optimiser.learning_rate = learner.settings.learning_rate


def rate_at(progress: float, *, peak: float) -> float:
    """The step size at a share of the training: up to `peak` in a line, then down along a cosine.

    Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    if progress < WARM_UP:
        return peak * max(LAST_RATE, progress / WARM_UP)
    fallen = min(1.0, (progress - WARM_UP) / (1.0 - WARM_UP))
    return peak * (LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * fallen)))


def window(learner: Learner, stretch: Stretch) -> Stretch:
    """Of a sequence longer than the network can read, half the time the newest part: what comes next follows on it."""
    if learner.rng.random() < NEWEST:
        surplus = max(0, len(stretch.items) - 1 - learner.network.settings.max_length)
        return Stretch(stretch.items[surplus:], stretch.weights[surplus:])
    return learner.readable(stretch)


def _learn(learner: Learner, batch: Sequence[Stretch]) -> float:
    windows = [window(learner, stretch) for stretch in batch]
    return learner.step(Micro(collate(windows, learner.catalogue.rows_of), None)).loss


def _batches(stretches: Sequence[Stretch], users: int, rng: np.random.Generator) -> Iterator[list[Stretch]]:
    order = rng.permutation(len(stretches)).tolist()
    return ([stretches[index] for index in order[start : start + users]] for start in range(0, len(order), users))
