"""One run of `benchmarks.accuracy`: a recipe learnt with one seed, stopped by the validation item, judged on the test.

Every few passes the validation items are ranked in both ways. Each way is judged in the end by the weights that ranked
them best in that way: by NDCG@10 among the whole catalogue, by HR@10 among the drawn items. The seconds are those of
training alone, without the looks. A run that goes on for more than half an hour also says what it had learnt by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

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

ClockName = Literal["wall", "cpu"]
CLOCKS: dict[ClockName, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What may bound a training: the clock on the wall, or the processor time of this process."""
HALF_HOUR: dict[ClockName, float] = {"wall": 1_800.0, "cpu": 3_600.0}
"""Seconds of half an hour on a machine of two cores."""
LAST_STEP = 1.01
"""By so much of its time a run may take longer: the step that is under way is finished."""

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
    clock: ClockName = "cpu"
    """By which `retrain.max_seconds` bounded it; by CPU seconds in files that do not say."""
    parameters: int
    points: tuple[Point, ...] = ()
    test: Judged | None = None
    """Both ways, of the weights that were best on the validation items among the whole catalogue."""
    test_sampled: Figures | None = None
    """Among the drawn items, of the weights that were best there on the validation items."""
    test_in_half_an_hour: Judged | None = None
    """Of the weights that were best within `HALF_HOUR`, where the training went on for longer. The rate had not come
    down by then: a run of half an hour is better."""
    finished: bool = False
    """Not where somebody stopped it."""

    @property
    def is_in_half_an_hour(self) -> bool:
        """Whether the training took no longer, by the clock that bounded it."""
        last = self.points[-1]
        seconds = last.wall_seconds if self.clock == "wall" else last.cpu_seconds
        return seconds <= HALF_HOUR[self.clock] * LAST_STEP

    @property
    def best(self) -> Point:
        """The look at which the validation items were ranked best, by NDCG@10 over the whole catalogue."""
        return max(self.points, key=lambda point: point.validation.ndcg)

    @property
    def best_sampled(self) -> Point:
        """The look at which they were ranked best among the drawn items, by HR@10."""
        return max(self.points, key=lambda point: point.validation_sampled.hr if point.validation_sampled else 0.0)


def fit(
    name: str, recipe: Recipe, split: Split, *, seed: int, clock: ClockName, stop: threading.Event
) -> Iterator[Run]:
    """The run as it stands after each look at the validation items, the last time with its test.

    `retrain.max_seconds` bounds the training by the clock on the wall or in CPU seconds of this process, in which
    somebody else's load does not show. With `stop` set the run ends where it is; before its first step there is none.
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
        clock=clock,
        parameters=_parameters(recipe.model, items=split.items),
    )
    spent = {name: _Stopwatch(now) for name, now in CLOCKS.items()}
    kept = _Kept({}, {}, {})
    for taught in learn_in_passes(learner, stretches, recipe.retrain, clock=CLOCKS[clock], stop=stop):
        for stopwatch in spent.values():
            stopwatch.pause()
        if taught.progress * LOOKS >= len(run.points) + 1:
            judged = judge(learner.network, split, "validation", candidate_BC=candidate_BC)
            run = msgspec.structs.replace(run, points=(*run.points, _point(taught, judged, spent)))
            kept = _kept(kept, run, learner, rows=split.items + 1)
            yield run
            if len(run.points) - run.points.index(run.best) > PATIENCE:
                break
        for stopwatch in spent.values():
            stopwatch.go_on()
    if run.points:
        yield msgspec.structs.replace(_tested(run, kept, recipe.model, split), finished=not stop.is_set())


class _Kept(NamedTuple):
    """The weights that were best on the validation items: in each way of ranking, and within half an hour."""

    best: Weights
    best_sampled: Weights
    best_in_half_an_hour: Weights


def _kept(kept: _Kept, run: Run, learner: Learner, *, rows: int) -> _Kept:
    """After one more look."""
    newest = run.points[-1]
    if run.best is newest:
        kept = kept._replace(best=_weights(learner, rows))
    if run.best_sampled is newest:
        kept = kept._replace(best_sampled=_weights(learner, rows))
    return kept._replace(best_in_half_an_hour=kept.best) if run.is_in_half_an_hour else kept


def _tested(run: Run, kept: _Kept, model: ModelSettings, split: Split) -> Run:
    """With the test, of the weights that were kept for it."""
    candidate_BC = split.candidates()

    def of(weights: Weights) -> Judged:
        network = SASRec.from_tensors(model, weights, capacity=split.items + 1)
        return judge(network, split, "test", candidate_BC=candidate_BC)

    run = msgspec.structs.replace(run, test=of(kept.best))
    if candidate_BC is not None:
        run = msgspec.structs.replace(run, test_sampled=of(kept.best_sampled).sampled)
    if kept.best_in_half_an_hour and not run.is_in_half_an_hour:
        run = msgspec.structs.replace(run, test_in_half_an_hour=of(kept.best_in_half_an_hour))
    return run


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The settings, section by section, without the seed: that stands beside them."""
    sections = {name: section.model_dump() for name, section in recipe._asdict().items()}
    del sections["trainer"]["seed"]
    return sections


def _weights(learner: Learner, rows: int) -> Weights:
    """As they stand."""
    return {key: weight.clone() for key, weight in learner.network.tensors(rows=rows).items()}


class _Stopwatch:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._since = clock()

    def pause(self) -> None:
        self.seconds += self._clock() - self._since

    def go_on(self) -> None:
        self._since = self._clock()


def _point(taught: Pass, judged: Judged, spent: dict[ClockName, _Stopwatch]) -> Point:
    return Point(
        passes=taught.number,
        cpu_seconds=spent["cpu"].seconds,
        wall_seconds=spent["wall"].seconds,
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
