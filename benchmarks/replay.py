"""A whole log at full speed through the running system: is everything where it belongs, and does the model learn?

    .venv/bin/python -m benchmarks.replay FILE [--limit N] [--kill] [--quick]

Every click must stand in its user's sequence exactly once, every user who clicked must have recommendations, and the
prequential HR@10 and NDCG@10 (over the whole catalogue, before learning) must climb and end above recently-popular and
item-to-item transitions on the same events. `--kill` adds a kill -9 of every process in turn and of the broker once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from benchmarks.climb import METRICS, RANKERS, Climb, Point, figures_of, print_climb
from benchmarks.common import Baseline, Goal, Row, arguments, equal, explained, report, row
from benchmarks.sequences import Comparison, clicks_of, compare, newest_states
from benchmarks.system import BROKER, PROCESSES, System, running_system
from deploy.cli.replay import named_columns
from deploy.observe.offsets import Offsets
from deploy.observe.reading import read_all
from deploy.replay.formats import load_log
from deploy.replay.player import Pace, Played
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, RECOMMENDATIONS, TOPICS

QUICK_ROWS = 20_000
LONGEST_SEQUENCE = 10_000
SMALLEST_WINDOW, LARGEST_WINDOW = 1_000, 100_000
EVER_SECONDS = 1e10
"""Longer than any log: a tenth of the stream is counted in clicks, all of them predicted."""
TENTHS = 10
# Behind by a million messages, a consumer that is well leaves single partitions alone for minutes.
STALL_SECONDS = 600
COLUMNS = ("user", "item", "time", "clicked", "propensity", "position", "policy")

Kills = Literal["none", "each in turn"]


class Drive(NamedTuple):
    """How one replay went."""

    played: Played
    seconds: float
    """From the first event sent until every process had done everything."""
    points: Sequence[Point]
    """The climb; the last one stands at the end of the stream."""
    restarted: Mapping[str, bool]
    """Of every process that was killed, whether another stands in its place at the end."""


class Run(NamedTuple):
    """How it went, and what it left behind."""

    drive: Drive
    comparison: Comparison
    users_with_recommendations: int
    dead_letters: int


def replay(rows: pa.Table, directory: Path, *, kills: Kills = "none", pace: Pace) -> Run:
    """Starts the system in `directory`, plays the rows into it and holds what came of it against them."""
    clicks = clicks_of(rows)
    if not clicks:
        raise ValueError("nothing in the log was clicked; give another one, or correct --clicked-column")
    max_length = max(2, min(max(len(chosen) for chosen in clicks.values()), LONGEST_SEQUENCE))
    count = sum(len(chosen) for chosen in clicks.values())
    window = min(max(count // TENTHS, SMALLEST_WINDOW), LARGEST_WINDOW)
    with running_system(
        directory,
        stream={"max_sequence_length": max_length},
        trainer={"metric_window": window, "metric_window_seconds": EVER_SECONDS, "predicted_clicks": count},
        supervisor={"stall_seconds": STALL_SECONDS},
    ) as system:
        drive = _drive(system, rows, clicks=count, kills=kills, pace=pace)
        return Run(
            drive=drive,
            comparison=compare(clicks, newest_states(system.kafka), max_length=max_length),
            users_with_recommendations=len(clicks.keys() & _recommended_to(system.kafka)),
            dead_letters=_dead_letters(system.kafka),
        )


def _drive(system: System, rows: pa.Table, *, clicks: int, kills: Kills, pace: Pace) -> Drive:
    began = time.monotonic()
    with Climb(system, clicks=clicks, at_share=_kills(system) if kills == "each in turn" else ()) as climb:
        played = system.play(rows, pace=pace)
        system.wait_until_caught_up()
    seconds = time.monotonic() - began
    system.wait_until_started()
    end = Point(1.0, figures_of(system.metrics("trainer")))
    return Drive(played, seconds, [*climb.points[: TENTHS - 1], end], system.restarted())


def _kills(system: System) -> list[tuple[float, Callable[[], None]]]:
    """Each process in turn, and the broker in between, while the stream goes by."""
    half = len(PROCESSES) // 2
    victims = (*PROCESSES[:half], BROKER, *PROCESSES[half:])
    return [((1 + nth) / (2 + len(victims)), functools.partial(system.kill, name)) for nth, name in enumerate(victims)]


def _recommended_to(kafka: KafkaSettings) -> set[str]:
    return {record.key.decode() for record in read_all(kafka, RECOMMENDATIONS)}


def _dead_letters(kafka: KafkaSettings) -> int:
    with contextlib.closing(Offsets(kafka)) as offsets:
        return sum(offsets.totals([name for name in TOPICS if name.endswith(DEAD_LETTER_SUFFIX)]).values())


def rows_of(run: Run) -> list[Row]:
    """The report: what must be, then what shall be, then how fast."""
    return [*_must(run), *_foreseen(run), *_killed(run), *_rates(run)]


def _must(run: Run) -> list[Row]:
    held = run.comparison
    sequences = f"sequences equal to the log (last {held.max_length:,} clicks: items, times, order)"
    return [
        equal(sequences, held.equal_users, Baseline("users in the log", held.users)),
        equal("clicks ever applied", held.applied, Baseline("clicks in the log", held.clicks)),
        equal("users with recommendations", run.users_with_recommendations, Baseline("users in the log", held.users)),
        equal("messages on dead-letter topics", run.dead_letters, Baseline("none", 0)),
    ]


def _foreseen(run: Run) -> list[Row]:
    first, last = run.drive.points[0].figures, run.drive.points[-1].figures
    rows = [
        row(
            f"{name} of the last tenth",
            last[name, "sasrec"],
            unit="",
            baseline=Baseline(ranker, last[name, ranker]),
            goal=Goal("above", 1.0),
        )
        for name in METRICS
        for ranker in RANKERS
        if ranker != "sasrec"
    ]
    for name in METRICS:
        began = Baseline("first tenth", first[name, "sasrec"])
        rows.append(row(f"{name} climbs", last[name, "sasrec"], unit="", baseline=began, goal=Goal("above", 1.0)))
    return rows


def _killed(run: Run) -> list[Row]:
    if not run.drive.restarted:
        return []
    killed = Baseline("killed with -9", len(run.drive.restarted))
    return [equal("running again: " + ", ".join(run.drive.restarted), sum(run.drive.restarted.values()), killed)]


def _rates(run: Run) -> list[Row]:
    return [
        row("events into Kafka", run.drive.played.events / run.drive.played.seconds, unit="1/s"),
        row("clicks through the whole system", run.comparison.applied / run.drive.seconds, unit="1/s"),
    ]


def load_rows(options: argparse.Namespace) -> pa.Table:
    """The log that the command line names."""
    columns = named_columns(**{kind: getattr(options, f"{kind}_column") for kind in COLUMNS})
    return load_log(options.file, columns=columns).rows.slice(0, options.limit)


def main() -> None:
    """Plays, compares, reports."""
    options = _options()
    rows = load_rows(options)
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        run = replay(rows, options.state or Path(folder), kills=options.kill, pace=Pace(None))
    print_climb(run.drive.points)
    for difference in run.comparison.differences:
        print(difference)
    report("replay" if options.kill == "none" else "replay with kill -9", rows_of(run))


def _options() -> argparse.Namespace:
    parser = arguments("A whole log at full speed through the running system.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--limit", type=int, help="rows, in the order of time")
    parser.add_argument(
        "--kill",
        action="store_const",
        const="each in turn",
        default="none",
        help="kill -9 of every process in turn and of the broker once",
    )
    parser.add_argument("--state", type=Path, help="keep everything in this new folder")
    for kind in COLUMNS:
        parser.add_argument(f"--{kind}-column", help="as in `sasrec-stream replay`")
    options = parser.parse_args()
    if options.quick and options.limit is None:
        options.limit = QUICK_ROWS
    return options


if __name__ == "__main__":
    explained(main)
