"""RecTools' SASRec on the same split, as a run of `benchmarks.accuracy`."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.fitting import ClockName, Point, Run
from benchmarks.peers import peer_python
from benchmarks.protocol import SHORTEST, Figures, Judged, Split
from benchmarks.recipes import Recipe

NAME = "rectools"
_SCRIPT = Path(__file__).with_name("rectools_curve.py")


def fit_rectools(
    recipe: Recipe, split: Split, *, seed: int, threads: int, clock: ClockName, stop: threading.Event
) -> Iterator[Run]:
    """The run as it stands after every pass, and at last as it ended.

    A network of the recipe's shape, for as long, with everything else as RecTools has it by default.

    Raises:
        ValueError: RecTools failed.
    """
    settings = rectools_settings(recipe, seed=seed, threads=threads, clock=clock)
    run = Run(
        name=NAME,
        seed=seed,
        settings={NAME: settings},
        data=split.fingerprint(),
        threads=threads,
        clock=clock,
        parameters=0,
    )
    for said in _passes(split, settings, stop):
        run = msgspec.structs.replace(
            run,
            parameters=said.parameters,
            points=tuple(_point(point) for point in said.points),
            test=Judged(Figures(said.test.hr, said.test.ndcg), None),
        )
        yield run
    if run.points:
        yield msgspec.structs.replace(run, finished=not stop.is_set())


def _passes(split: Split, settings: dict[str, Any], stop: threading.Event) -> Iterator[_Said]:
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **_arrays(split))
        file.flush()
        command = [str(peer_python()), str(_SCRIPT), file.name, json.dumps(settings)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield msgspec.json.decode(line, type=_Said)
                if stop.is_set():
                    process.terminate()
    if process.returncode and not stop.is_set():
        raise ValueError(f"{_SCRIPT.name} failed with status {process.returncode}; what it said stands above")


def rectools_settings(recipe: Recipe, *, seed: int, threads: int, clock: ClockName) -> dict[str, Any]:
    """All that a run of RecTools is told."""
    return {
        **recipe.model.model_dump(include={"units", "heads", "blocks", "dropout", "max_length"}),
        "seconds": recipe.retrain.max_seconds,
        "clock": clock,
        "threads": threads,
        "seed": seed,
    }


class _Seen(msgspec.Struct):
    passes: int
    cpu_seconds: float
    wall_seconds: float
    hr: float
    ndcg: float


class _Tested(msgspec.Struct):
    hr: float
    ndcg: float


class _Said(msgspec.Struct):
    points: list[_Seen]
    test: _Tested
    parameters: int


def _point(seen: _Seen) -> Point:
    return Point(
        passes=seen.passes,
        cpu_seconds=seen.cpu_seconds,
        wall_seconds=seen.wall_seconds,
        loss=None,
        validation=Figures(seen.hr, seen.ndcg),
        validation_sampled=None,
    )


def _arrays(split: Split) -> dict[str, Any]:
    training = split.training()
    tested = [user for user, row_E in enumerate(split.sequences) if len(row_E) >= SHORTEST]
    return {
        "user_N": np.repeat(np.arange(len(training)), [len(row_E) for row_E in training]),
        "item_N": np.concatenate(training),
        "user_B": np.array(tested),
        "validation_B": np.array([question.target for question in split.questions("validation")]),
        "test_B": np.array([question.target for question in split.questions("test")]),
    }
