"""Follows how well the next clicks are foreseen while the stream goes by, share by share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.system import System
from deploy.observe.scrape import Sample

RANKERS = ("sasrec", "popular", "transitions")
STEPS = 10
METRICS = {"HR@10": "sasrec_prequential_hr10", "NDCG@10": "sasrec_prequential_ndcg10"}
_TRAINED = "sasrec_examples_trained_total"
_PERIOD_SECONDS = 0.5

Figures = Mapping[tuple[str, str], float]
"""By the name of the metric and the ranker; over the trainer's moving window."""


class Point(NamedTuple):
    """What stood when this share of the clicks had been learnt."""

    share: float
    figures: Figures


class Climb:
    """Looks once a second from a thread of its own; `at_share` is done once when so much of the clicks is learnt."""

    def __init__(
        self, system: System, *, clicks: int, at_share: Sequence[tuple[float, Callable[[], None]]] = ()
    ) -> None:
        self.points: list[Point] = []
        self._system = system
        self._clicks = clicks
        self._trained = Trained()
        self._due = sorted(at_share, key=lambda planned: planned[0])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="climb", daemon=True)

    def __enter__(self) -> Climb:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_SECONDS):
            self._look(self._system.metrics("trainer"))

    def _look(self, samples: Sequence[Sample]) -> None:
        share = self._trained.total(samples) / self._clicks
        while self._due and self._due[0][0] <= share:
            self._due.pop(0)[1]()
        if share >= (len(self.points) + 1) / STEPS and (figures := figures_of(samples)):
            self.points.append(Point(share, figures))


class Trained:
    """How many examples were learnt over all lives of a trainer; what it learns again after a kill counts again."""

    def __init__(self) -> None:
        self._before, self._last = 0.0, 0.0

    def total(self, samples: Sequence[Sample]) -> float:
        """After this look; no samples while the trainer is away."""
        now = sum(sample.value for sample in samples if sample.name == _TRAINED)
        if samples and now < self._last:
            self._before += self._last
        if samples:
            self._last = now
        return self._before + self._last


def figures_of(samples: Sequence[Sample]) -> Figures:
    """HR@10 and NDCG@10 of every ranker, from what the trainer serves."""
    names = {metric: name for name, metric in METRICS.items()}
    return {
        (names[sample.name], sample.labels["ranker"]): sample.value
        for sample in samples
        if sample.name in names and sample.labels["ranker"] in RANKERS
    }


def print_climb(points: Sequence[Point]) -> None:
    """One line per tenth of the stream."""
    table = Table(title="foreseen before it was learnt, over the whole catalogue")
    table.add_column("learnt", justify="right")
    for name in METRICS:
        for ranker in RANKERS:
            table.add_column(f"{name} {ranker}", justify="right")
    for point in points:
        figures = (f"{point.figures[name, ranker]:.4f}" for name in METRICS for ranker in RANKERS)
        table.add_row(f"{point.share:.0%}", *figures)
    Console(width=120).print(table)
