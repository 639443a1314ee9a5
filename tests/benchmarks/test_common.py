from __future__ import annotations

import json
import math
import socket

import pytest

from benchmarks.common import Baseline, Goal, report, row, this_machine


def test_the_last_line_is_one_json_object_with_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("speed", 50.0, unit="1/s", baseline=Baseline("the usual port", 20.0), goal=Goal("at least", 2.0)),
        row("lost", 1.0, unit="clicks", goal=Goal("exactly", 0.0, of="ours")),
        row("seconds", 3.0, unit="s"),
    ]

    report("example", rows)

    printed = capsys.readouterr().out
    said = json.loads(printed.splitlines()[-1])
    assert said["name"] == "example"
    assert set(said["machine"]) == {"cpu", "cores", "system", "python", "torch"}
    assert said["rows"][0] == {
        "what": "speed",
        "ours": 50.0,
        "baseline": 20.0,
        "baseline_name": "the usual port",
        "ratio": 2.5,
        "unit": "1/s",
        "goal": "ratio at least 2",
        "met": True,
    }
    assert [line["met"] for line in said["rows"]] == [True, False, None]
    assert "MISSED" in printed


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("at least", 2.0), True),
        (Goal("above", 2.0), False),
        (Goal("at most", 2.0), True),
        (Goal("exactly", 2.0), True),
        (Goal("exactly", 4.0, of="ours"), True),
    ],
)
def test_a_goal_is_held_against_the_ratio_or_against_ours(goal: Goal, met: bool) -> None:  # noqa: FBT001 - a case
    assert row("figure", 4.0, unit="", baseline=Baseline("half", 2.0), goal=goal).met is met


@pytest.mark.parametrize("kind", ["at least", "above", "at most", "exactly"])
def test_a_figure_that_is_none_meets_no_goal(kind: str) -> None:
    assert row("figure", math.nan, unit="", goal=Goal(kind, 0.0, of="ours")).met is False  # type: ignore[arg-type]


def test_nothing_is_divided_by_a_baseline_of_zero() -> None:
    assert row("figure", 4.0, unit="", baseline=Baseline("none", 0.0)).ratio is None


def test_the_machine_is_described_without_its_name() -> None:
    assert socket.gethostname() not in repr(this_machine())
