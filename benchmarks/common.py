"""What every benchmark prints: a table for people, and as its last line one JSON object for programs."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from deploy.cli.main import BAD_USAGE

_CPU_LIST = Path("/proc/cpuinfo")
_WIDTH = 140
_VERDICTS = {True: "met", False: "MISSED", None: ""}


class Goal(NamedTuple):
    """What a figure shall reach; `of` says whether it is ours alone or its ratio to the baseline."""

    kind: Literal["at least", "above", "at most", "exactly"]
    value: float
    of: Literal["ours", "ratio"] = "ratio"

    def __str__(self) -> str:
        return f"{self.of} {self.kind} {_figure(self.value)}"

    def is_met(self, figure: float) -> bool:
        """NaN meets nothing."""
        match self.kind:
            case "at least":
                return figure >= self.value
            case "above":
                return figure > self.value
            case "at most":
                return figure <= self.value
            case "exactly":
                return figure == self.value


class Baseline(NamedTuple):
    """What ours is held against, measured in the same run."""

    name: str
    value: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a benchmark. `met` is None where no goal stands."""

    what: str
    ours: float
    baseline: float | None
    baseline_name: str | None
    ratio: float | None
    unit: str
    goal: str | None
    met: bool | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures come from; neither host name nor path."""

    cpu: str
    cores: int
    system: str
    python: str
    torch: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run said."""

    name: str
    machine: Machine
    rows: tuple[Row, ...]


def row(what: str, ours: float, *, unit: str, baseline: Baseline | None = None, goal: Goal | None = None) -> Row:
    """A row with its ratio (ours over the baseline) and its verdict."""
    ratio = None if baseline is None else _ratio(ours, baseline.value)
    return Row(
        what=what,
        ours=ours,
        baseline=None if baseline is None else baseline.value,
        baseline_name=None if baseline is None else baseline.name,
        ratio=ratio,
        unit=unit,
        goal=None if goal is None else str(goal),
        met=None if goal is None else goal.is_met(ours if goal.of == "ours" or ratio is None else ratio),
    )


def equal(what: str, ours: float, baseline: Baseline) -> Row:
    """A row that must be the same as its baseline."""
    return row(what, ours, unit="", baseline=baseline, goal=Goal("exactly", baseline.value, of="ours"))


def report(name: str, rows: Sequence[Row]) -> None:
    """Prints the table, then the JSON object. A missed goal is printed as missed; the exit status stays 0."""
    whole = Report(name=name, machine=this_machine(), rows=tuple(rows))
    Console(width=_WIDTH).print(_table(whole))
    print(msgspec.json.encode(whole).decode(), flush=True)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; it adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    return parser


def explained(main: Callable[[], None]) -> None:
    """Runs a benchmark; what a person can put right is one line and exit status 2, as on the command line."""
    try:
        main()
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_USAGE)


def this_machine() -> Machine:
    """The processor, how many cores of it this process may use, and the versions that matter."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=version("torch"),
    )


def _cpu_model() -> str:
    if _CPU_LIST.exists():
        for line in _CPU_LIST.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ratio(ours: float, baseline: float) -> float | None:
    """None where there is nothing to divide by."""
    return None if baseline == 0 or math.isnan(baseline) else ours / baseline


def _table(whole: Report) -> Table:
    machine = whole.machine
    caption = f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}, torch {machine.torch}"
    table = Table(title=whole.name, caption=caption)
    for heading in ("what", "ours", "baseline", "", "ratio", "goal", ""):
        table.add_column(heading, justify="right" if heading in ("ours", "baseline", "ratio") else "left")
    for line in whole.rows:
        table.add_row(
            line.what,
            f"{_figure(line.ours)} {line.unit}".strip(),
            _figure(line.baseline),
            line.baseline_name or "",
            "" if line.ratio is None else f"{line.ratio:.3f}",
            line.goal or "",
            _VERDICTS[line.met],
        )
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"
