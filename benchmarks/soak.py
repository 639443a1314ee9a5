"""A million items and a hundred thousand users: what does the learner weigh, and does it grow once it is warm?

    .venv/bin/python -m benchmarks.soak [--items N] [--users N] [--seconds S] [--quick]

The table of items is filled to its bound first, then what else fills up slowly: the replay reservoir, with as many
users as it holds, and the item-to-item baseline, with a follower of every item. Then clicks come of users drawn alike,
a part of them on items that nobody has seen before, so that others are evicted all the time; what is clicked is mostly
young. The resident memory of
the process is read as it goes: its middle over the last third of the run is held against that over the second third.
The users' histories are the benchmark's own; they are there before the first reading. Now and then a whole checkpoint
is written, as the trainer does, and the last one is read back.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId
from trainer.baselines import Events
from trainer.batch import Stretch
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.publish import write
from trainer.settings import TrainerSettings
from trainer.state import resume

ITEMS, USERS, SECONDS = 1_000_000, 100_000, 420.0
QUICK_ITEMS, QUICK_USERS, QUICK_SECONDS = 50_000, 5_000, 25.0
CONTEXT = 50
NEW_SHARE = 0.05
YOUTH = 4.0
"""Power of a uniform number: how much of what is clicked is young."""
START_MS = 1_700_000_000_000
CLICK_MS = 40
CHECKPOINTS = 3
MIB = 1 << 20


class World:
    """Users with their last clicks, and a shop whose items come and go."""

    def __init__(self, items: int, users: int, *, seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._items = items
        self.newest = items
        """Items there ever were; the last `items` of them may be clicked."""
        self._history_UT = self._rng.integers(items, size=(users, CONTEXT))
        self.clicks = 0

    def batch(self, size: int) -> list[ClickExample]:
        """The next clicks, each with the user's history before it."""
        made = []
        for user in self._rng.integers(len(self._history_UT), size=size).tolist():
            item = self._next_item()
            history_T = self._history_UT[user]
            at_ms = START_MS + CLICK_MS * self.clicks
            context = tuple(f"item-{number}" for number in history_T.tolist())
            identity = ExampleId("clicks", 0, self.clicks, 0)
            made.append(ClickExample(identity, f"user-{user}", context, f"item-{item}", at_ms, at_ms, None))
            history_T[:-1], history_T[-1] = history_T[1:].copy(), item
            self.clicks += 1
        return made

    def histories(self, users: int) -> Iterator[tuple[str, Stretch]]:
        """Users and what they clicked so far."""
        for user, history_T in enumerate(self._history_UT[:users].tolist()):
            yield f"user-{user}", Stretch(tuple(f"item-{number}" for number in history_T), (1.0,) * CONTEXT)

    def steps(self, count: int) -> Iterator[tuple[str, str]]:
        """So many items, the oldest first, each with one that was clicked after it."""
        for number in range(count):
            yield f"item-{number}", f"item-{self._next_old()}"

    def _next_old(self) -> int:
        return self.newest - 1 - int(self._items * self._rng.random() ** YOUTH)

    def _next_item(self) -> int:
        if self._rng.random() < NEW_SHARE:
            self.newest += 1
            return self.newest - 1
        return self._next_old()


class Reading(NamedTuple):
    """Resident memory after so many clicks."""

    clicks: int
    resident_mib: float


class Soaked(NamedTuple):
    """What a run has shown."""

    items: int
    empty_mib: float
    full_mib: float
    warm_mib: float
    """With reservoir and baseline filled as well."""
    readings: list[Reading]
    cpu_seconds: float
    evicted: int
    table_bytes: int
    """Embeddings and the optimiser's moments."""
    checkpoint_bytes: int
    checkpoint_seconds: float
    resumed: bool
    peak_mib: float


def soak(*, items: int, users: int, seconds: float, folder: Path) -> Soaked:
    """Fills the table, then learns for so long."""
    world = World(items, users)
    _warm_up()
    empty = _resident()
    learner = Learner(ModelSettings(), TrainerSettings(max_items=items))
    learner.admit(f"item-{number}" for number in range(items))
    full = _resident()
    fill(learner, world)
    warm, began, cpu_began = _resident(), time.monotonic(), time.process_time()
    readings, writings = list[Reading](), list[tuple[int, float]]()
    cpu_writing = 0.0
    while (passed := time.monotonic() - began) < seconds:
        learner.learn(world.batch(learner.settings.max_batch))
        readings.append(Reading(world.clicks, _resident()))
        if passed > seconds * len(writings) / CHECKPOINTS:
            cpu = time.process_time()
            writings.append(_write(learner, folder, version=1 + len(writings)))
            cpu_writing += time.process_time() - cpu
    cpu_seconds = time.process_time() - cpu_began - cpu_writing
    evicted = world.newest - len(learner.catalogue)
    table_bytes = 3 * 4 * learner.network.item_RD.numel()
    resumed = resume(folder / "soak" / f"{_write_last(learner, folder, len(writings) + 1):08d}", learner.settings)
    return Soaked(
        items=items,
        empty_mib=empty,
        full_mib=full,
        warm_mib=warm,
        readings=readings,
        cpu_seconds=cpu_seconds,
        evicted=evicted,
        table_bytes=table_bytes,
        checkpoint_bytes=writings[-1][0],
        checkpoint_seconds=writings[-1][1],
        resumed=resumed.learner.catalogue.same_as(learner.catalogue),
        peak_mib=_peak(),
    )


def fill(learner: Learner, world: World) -> None:
    """What would fill up over days: sequences to replay, and what follows each item."""
    users, stretches = zip(*world.histories(learner.replay.max_users), strict=True)
    learner.remember(users, stretches)
    last, after = (learner.catalogue.rows_of(items) for items in zip(*world.steps(world.newest), strict=True))
    learner.prequential.learn(Events(last[:, None], after), at_ms_N=np.full(len(last), START_MS))


def _warm_up() -> None:
    """What a process has once, whatever it learns: libraries, kernels, threads."""
    learner = Learner(ModelSettings(), TrainerSettings())
    small = World(5_000, 500)
    for _ in range(2):
        learner.learn(small.batch(learner.settings.max_batch))


def _write(learner: Learner, folder: Path, *, version: int) -> tuple[int, float]:
    """Bytes and seconds of a whole checkpoint; the one before it goes."""
    began = time.monotonic()
    written = write(learner, Cut(), root=folder, lineage="soak", version=version)
    took = time.monotonic() - began
    weight = sum(file.stat().st_size for file in Path(str(written.path)).iterdir())
    for file in Path(str(written.path)).iterdir():
        file.unlink()
    return weight, took


def _write_last(learner: Learner, folder: Path, version: int) -> int:
    write(learner, Cut(), root=folder, lineage="soak", version=version)
    return version


def middle(readings: list[Reading], *, third: int) -> float:
    """Median of the resident memory over one third of the run."""
    length = len(readings) // 3
    return float(np.median([reading.resident_mib for reading in readings[third * length : (third + 1) * length]]))


def growth(readings: list[Reading]) -> float:
    """MiB for every 100,000 clicks, along the line through the last two thirds."""
    late = np.array(readings[len(readings) // 3 :])
    return float(100_000 * np.polyfit(late[:, 0], late[:, 1], 1)[0])


def rows_of(found: Soaked) -> list[Row]:
    """The report."""
    clicks = found.readings[-1].clicks
    million = 1_000_000 / found.items
    warm, late = middle(found.readings, third=1), middle(found.readings, third=2)
    return [
        row("items in the table", found.items, unit=""),
        row("clicks learnt", clicks, unit=""),
        row("items evicted", found.evicted, unit=""),
        row("memory of a full table, per million items", (found.full_mib - found.empty_mib) * million, unit="MiB"),
        row("of it embeddings and moments", found.table_bytes / MIB * million, unit="MiB"),
        row("replay reservoir and item-to-item baseline, filled", found.warm_mib - found.full_mib, unit="MiB"),
        row(
            "resident, last third of the run",
            late,
            unit="MiB",
            baseline=Baseline("second third", warm),
            goal=Goal("at most", 1.01),
        ),
        row("growth per 100,000 clicks, last two thirds", growth(found.readings), unit="MiB"),
        row("peak, with a checkpoint being written and one read", found.peak_mib, unit="MiB"),
        row("checkpoint, per million items", found.checkpoint_bytes / MIB * million, unit="MiB"),
        row("writing it, per million items", found.checkpoint_seconds * million, unit="s"),
        row("the last checkpoint read back is the same", found.resumed, unit="", goal=Goal("exactly", 1.0, of="ours")),
        row("clicks per CPU second", clicks / found.cpu_seconds, unit="1/s"),
    ]


def _resident() -> float:
    return float(psutil.Process().memory_info().rss / MIB)


def _peak() -> float:
    """Kibibytes on Linux, bytes on macOS."""
    scale = MIB if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    """Soaks and reports."""
    options = _options()
    torch.set_num_threads(1)
    items = options.items or (QUICK_ITEMS if options.quick else ITEMS)
    users = options.users or (QUICK_USERS if options.quick else USERS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(items=items, users=users, seconds=seconds, folder=Path(folder))
    report("soak", rows_of(found))


def _options() -> argparse.Namespace:
    parser = arguments("What the learner weighs with a full table of items, and whether it grows once it is warm.")
    parser.add_argument("--items", type=int, help=f"{ITEMS:,}, quick {QUICK_ITEMS:,}")
    parser.add_argument("--users", type=int, help=f"{USERS:,}, quick {QUICK_USERS:,}")
    parser.add_argument("--seconds", type=float, help=f"{SECONDS:g}, quick {QUICK_SECONDS:g}")
    return parser.parse_args()


if __name__ == "__main__":
    explained(main)
