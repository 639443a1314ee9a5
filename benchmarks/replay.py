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
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.progress import track

from benchmarks.climb import METRICS, RANKERS, Climb, Point, figures_of, print_climb
from benchmarks.common import Baseline, Goal, Row, arguments, report, row
from benchmarks.sequences import Comparison, clicks_of, compare, newest_states
from benchmarks.system import BROKER, PROCESSES, System, running_system
from deploy.cli.replay import named_columns
from deploy.observe.offsets import Offsets
from deploy.observe.reading import read_all
from deploy.replay.events import Event, events
from deploy.replay.formats import load_log
from deploy.replay.player import Pace, Played, play
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, RECOMMENDATIONS, TOPICS

QUICK_ROWS = 20_000
LONGEST_SEQUENCE = 10_000
SMALLEST_WINDOW, LARGEST_WINDOW = 1_000, 100_000
TENTHS = 10
COLUMNS = ("user", "item", "time", "clicked", "propensity", "position", "policy")


class Run(NamedTuple):
    """What one replay left behind."""

    played: Played
    seconds: float
    """From the first event sent until every process had done everything."""
    comparison: Comparison
    users_with_recommendations: int
    dead_letters: int
    points: Sequence[Point]
    """The climb; the last one stands at the end of the stream."""
    restarted: Mapping[str, bool]
    """Of every process that was killed, whether it was running again at the end."""


def replay(rows: pa.Table, directory: Path, *, kill: bool) -> Run:
    """Starts the system in `directory`, plays the rows into it and holds what came of it against them."""
    clicks = clicks_of(rows)
    max_length = min(max(len(chosen) for chosen in clicks.values()), LONGEST_SEQUENCE)
    count = sum(len(chosen) for chosen in clicks.values())
    with running_system(
        directory,
        stream={"max_sequence_length": max(2, max_length)},
        trainer={"metric_window": min(max(count // TENTHS, SMALLEST_WINDOW), LARGEST_WINDOW)},
    ) as system:
        before = {name: system.pid(name) for name in PROCESSES}
        began = time.monotonic()
        with Climb(system, clicks=count, at_share=_kills(system) if kill else ()) as climb:
            played = play(_shown(rows), kafka=system.kafka, pace=Pace(None), stop=threading.Event())
            system.wait_until_caught_up()
            seconds = time.monotonic() - began
        system.wait_until_started()
        end = Point(1.0, figures_of(system.metrics("trainer")))
        return Run(
            played=played,
            seconds=seconds,
            comparison=compare(clicks, newest_states(system.kafka), max_length=max_length),
            users_with_recommendations=len(clicks.keys() & _recommended_to(system.kafka)),
            dead_letters=_dead_letters(system.kafka),
            points=[*climb.points[: TENTHS - 1], end],
            restarted={name: name == BROKER or system.pid(name) != before[name] for name in system.killed},
        )


def _kills(system: System) -> list[tuple[float, Callable[[], None]]]:
    """Each process in turn, and the broker in between, while the stream goes by."""
    victims: list[Callable[[], None]] = [functools.partial(system.kill, name) for name in PROCESSES]
    victims.insert(len(victims) // 2, system.kill_broker)
    return [((1 + nth) / (2 + len(victims)), kill) for nth, kill in enumerate(victims)]


def _shown(rows: pa.Table) -> Iterable[Event]:
    return track(events(rows), total=rows.num_rows, description="replay", console=Console(stderr=True))


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
    return [
        _equal("sequences equal to the log", held.equal_users, Baseline("users in the log", held.users)),
        _equal("clicks applied", held.applied, Baseline("clicks in the log", held.clicks)),
        _equal("users with recommendations", run.users_with_recommendations, Baseline("users in the log", held.users)),
        _equal("messages on dead-letter topics", run.dead_letters, Baseline("none", 0)),
    ]


def _equal(what: str, ours: float, baseline: Baseline) -> Row:
    return row(what, ours, unit="", baseline=baseline, goal=Goal("exactly", baseline.value, of="ours"))


def _foreseen(run: Run) -> list[Row]:
    first, last = run.points[0].figures, run.points[-1].figures
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
    if not run.restarted:
        return []
    killed = Baseline("killed with -9", len(run.restarted))
    return [_equal("running again: " + ", ".join(run.restarted), sum(run.restarted.values()), killed)]


def _rates(run: Run) -> list[Row]:
    return [
        row("events into Kafka", run.played.events / run.played.seconds, unit="1/s"),
        row("clicks through the whole system", run.comparison.applied / run.seconds, unit="1/s"),
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
        run = replay(rows, options.state or Path(folder), kill=options.kill)
    print_climb(run.points)
    for difference in run.comparison.differences:
        print(difference)
    report("replay" + (" with kill -9" if options.kill else ""), rows_of(run))


def _options() -> argparse.Namespace:
    parser = arguments("A whole log at full speed through the running system.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--limit", type=int, help="rows, in the order of time")
    parser.add_argument("--kill", action="store_true", help="kill -9 of every process in turn and of the broker once")
    parser.add_argument("--state", type=Path, help="keep everything in this new folder")
    for kind in COLUMNS:
        parser.add_argument(f"--{kind}-column", help="as in `sasrec-stream replay`")
    options = parser.parse_args()
    if options.quick and options.limit is None:
        options.limit = QUICK_ROWS
    return options


if __name__ == "__main__":
    main()
