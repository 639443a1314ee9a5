"""One run of `benchmarks.accuracy`: a recipe learnt with one seed, stopped by the validation item, judged on the test.

Every few passes the validation items are ranked in both ways. Each way is judged in the end by the weights that ranked
them best in that way: by NDCG@10 among the whole catalogue, by HR@10 among the drawn items. The seconds are those of
training alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.protocol import Figures, Fingerprint, Judged, Split, judge
from benchmarks.recipes import Recipe
from model.sasrec import SASRec
from model.settings import ModelSettings
from trainer.batch import Stretch
from trainer.learner import Learner
from trainer.passes import Pass, learn_in_passes

LOOKS = 24
"""At the validation items, evenly over the training."""
PATIENCE = 16
"""Looks without a better one after which a run ends."""

Weights = dict[str, torch.Tensor]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Where the run stood after some passes."""

    passes: int
    cpu_seconds: float
    wall_seconds: float
    loss: float | None
    validation: Figures
    validation_sampled: Figures | None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `test` stays None until it is finished."""

    name: str
    seed: int
    settings: dict[str, Any]
    data: Fingerprint | None = None
    """What it was learnt from; None in files that did not say so yet, which are not reported."""
    threads: int
    parameters: int
    points: tuple[Point, ...] = ()
    test: Judged | None = None
    """Both ways, of the weights that were best on the validation items among the whole catalogue."""
    test_sampled: Figures | None = None
    """Among the drawn items, of the weights that were best there on the validation items."""
    finished: bool = False
    """Not where somebody stopped it."""

    @property
    def best(self) -> Point:
        """The look at which the validation items were ranked best, by NDCG@10 over the whole catalogue."""
        return max(self.points, key=lambda point: point.validation.ndcg)

    @property
    def best_sampled(self) -> Point:
        """The look at which they were ranked best among the drawn items, by HR@10."""
        return max(self.points, key=lambda point: point.validation_sampled.hr if point.validation_sampled else 0.0)


def fit(name: str, recipe: Recipe, split: Split, *, seed: int, stop: threading.Event) -> Iterator[Run]:
    """The run as it stands after each look at the validation items, the last time with its test.

    `retrain.max_seconds` bounds the training in CPU seconds of this process, in which somebody else's load does not
    show. With `stop` set the run ends where it is; before its first step there is none.
    """
    trainer = recipe.trainer.model_copy(update={"seed": seed})
    learner = Learner(recipe.model, trainer)
    learner.admit(str(row) for row in range(1, split.items + 1))
    stretches = [_stretch(row_E) for row_E in split.training() if len(row_E) > 1]
    candidate_BC = split.candidates()
    run = Run(
        name=name,
        seed=seed,
        settings=as_dict(recipe),
        data=split.fingerprint(),
        threads=torch.get_num_threads(),
        parameters=_parameters(recipe.model, items=split.items),
    )
    wall = _Stopwatch(time.perf_counter)
    best: Weights = {}
    best_sampled: Weights = {}
    for taught in learn_in_passes(learner, stretches, recipe.retrain, clock=time.process_time, stop=stop):
        wall.pause()
        if taught.progress * LOOKS >= len(run.points) + 1:
            judged = judge(learner.network, split, "validation", candidate_BC=candidate_BC)
            run = msgspec.structs.replace(run, points=(*run.points, _point(taught, judged, wall.seconds)))
            if run.best is run.points[-1]:
                best = _weights(learner, split)
            if run.best_sampled is run.points[-1]:
                best_sampled = _weights(learner, split)
            yield run
            if len(run.points) - run.points.index(run.best) > PATIENCE:
                break
        wall.go_on()
    if not run.points:
        return
    test, test_sampled = (
        judge(
            SASRec.from_tensors(recipe.model, weights, capacity=split.items + 1),
            split,
            "test",
            candidate_BC=candidate_BC,
        )
        for weights in (best, best_sampled)
    )
    yield msgspec.structs.replace(run, test=test, test_sampled=test_sampled.sampled, finished=not stop.is_set())


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The settings, section by section, without the seed: that stands beside them."""
    sections = {name: section.model_dump() for name, section in recipe._asdict().items()}
    del sections["trainer"]["seed"]
    return sections


def _weights(learner: Learner, split: Split) -> Weights:
    """As they stand."""
    return {key: weight.clone() for key, weight in learner.network.tensors(rows=split.items + 1).items()}


class _Stopwatch:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._since = clock()

    def pause(self) -> None:
        self.seconds += self._clock() - self._since

    def go_on(self) -> None:
        self._since = self._clock()


def _point(taught: Pass, judged: Judged, wall_seconds: float) -> Point:
    return Point(
        passes=taught.number,
        cpu_seconds=taught.seconds,
        wall_seconds=wall_seconds,
        loss=taught.loss,
        validation=judged.catalogue,
        validation_sampled=judged.sampled,
    )


def _stretch(row_E: np.ndarray) -> Stretch:
    items = tuple(str(row) for row in row_E.tolist())
    return Stretch(items, (1.0,) * len(items))


def _parameters(model: ModelSettings, *, items: int) -> int:
    """Weights that are learnt, without rows that no item has."""
    network = SASRec(model, capacity=items, generator=torch.Generator())
    return sum(weight.numel() for weight in network.parameters())
