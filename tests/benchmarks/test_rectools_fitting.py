"""RecTools' passes become the points of a run, one by one; a process that stands in for it says what RecTools would."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rectools_fitting
from benchmarks.fitting import Run
from benchmarks.protocol import Split
from benchmarks.recipes import RECIPES

PASSES = """
import json, sys
settings = json.loads(sys.argv[2])
print("a library's own words", flush=True)
points = []
for number in range(1, settings["passes"] + 1):
    ndcg = [0.1, 0.3, 0.2][number - 1]
    points.append({"passes": number, "cpu_seconds": 2.0 * number, "wall_seconds": number, "hr": 0.5, "ndcg": ndcg})
    print(json.dumps({"points": points, "test": {"hr": 0.4, "ndcg": 0.25}, "parameters": 9}), flush=True)
sys.exit(3 if settings["then"] == "fail" else 0)
"""


@pytest.fixture
def stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    script = tmp_path / "rectools_curve.py"
    script.write_text(PASSES)
    monkeypatch.setattr(rectools_fitting, "_SCRIPT", script)
    monkeypatch.setattr(rectools_fitting, "peer_python", lambda: Path(sys.executable))
    return threading.Event()


def runs(stop: threading.Event, monkeypatch: pytest.MonkeyPatch, *, then: str) -> Iterator[Run]:
    monkeypatch.setattr(rectools_fitting, "rectools_settings", lambda *_, **__: {"passes": 3, "then": then})
    split = Split([np.arange(1, 6), np.arange(3, 12)], 11)
    return rectools_fitting.fit_rectools(RECIPES["bpr"], split, seed=1, threads=1, clock="cpu", stop=stop)


def test_every_pass_is_a_point_as_soon_as_it_is_done(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list(runs(stop, monkeypatch, then="end"))

    assert [len(run.points) for run in said] == [1, 2, 3, 3]
    assert [run.finished for run in said] == [False, False, False, True]
    assert said[-1].test is not None
    assert said[-1].test.catalogue == (0.4, 0.25)
    assert said[-1].best.passes == 2


def test_what_fails_is_said(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="failed with status 3"):
        list(runs(stop, monkeypatch, then="fail"))


def test_who_is_stopped_keeps_the_passes_that_were_made(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    said = runs(stop, monkeypatch, then="end")

    first = next(said)
    stop.set()
    *_, last = said

    assert len(first.points) == 1
    assert last.points
    assert not last.finished
