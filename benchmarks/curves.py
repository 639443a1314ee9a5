"""The learning curves of `benchmarks.accuracy` as a picture: NDCG@10 on the validation items over training time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.fitting import Point, Run

_INCHES = (9.0, 5.5)
_DOTS_PER_INCH = 110


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """One line a run, the time in CPU seconds, for these are what a loaded machine cannot stretch."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    for points, names in _labels(runs).items():
        seconds = [point.cpu_seconds for point in points]
        axes.plot(seconds, [point.validation.ndcg for point in points], marker=".", label=" = ".join(names))
    axes.set_xlabel("CPU seconds of training")
    axes.set_ylabel("NDCG@10, whole catalogue, validation item")
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(left=0.0)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _labels(runs: Sequence[Run]) -> dict[tuple[Point, ...], list[str]]:
    """Each curve once, with all that learnt along it."""
    labels: dict[tuple[Point, ...], list[str]] = {}
    for run in runs:
        labels.setdefault(run.points, []).append(run.name if run.seed == 1 else f"{run.name}, seed {run.seed}")
    return labels
