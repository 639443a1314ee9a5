"""Impressions and clicks of a real feed through the running system: do the totals of the join equal the file's?

    .venv/bin/python -m benchmarks.joins FILE --histories FILE [--limit N] [--quick]

Sequences start from the histories (organic clicks); then every row is an impression, a slate of its own, and a click
where it was clicked. Counted in the file: distinct (user, item, time), repeats, clicked and not. Counted by the system:
the accounts that every user's state keeps, summed (invariant I2), and the ledger, which must balance.

Played at full speed, clicks and impressions are read days of event time apart, which live traffic never is. So the run
sets the join's memory (`SETTINGS`) to outlast the log; with the defaults, clicks that ran ahead of their impressions by
more than the attribution window end as served by somebody unknown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import asdict

from benchmarks.common import Baseline, Row, arguments, equal, explained, report, row
from benchmarks.sequences import newest_states
from benchmarks.system import running_system
from deploy.replay.formats import load_log
from deploy.replay.histories import after_histories, load_histories
from deploy.replay.player import Pace
from stream.accounts import read_accounts
from stream.sequences import UserState

QUICK_ROWS = 1_000
DAY_SECONDS = 86_400
SETTINGS = {
    "attribution_window_seconds": 30 * DAY_SECONDS,
    "lateness_seconds": 3_650 * DAY_SECONDS,
    "remembered_slates": 1_000,
    "max_parked_clicks": 1_000,
}


class Totals(NamedTuple):
    """How everything ended, by either way of counting."""

    items_seen: int
    items_clicked: int
    items_unclicked: int
    items_duplicate: int
    items_late: int
    clicks_applied: int
    clicks_duplicate: int
    clicks_late: int


class Joined(NamedTuple):
    """What the running system made of the log."""

    seconds: float
    totals: Totals
    unaccounted: int
    """Messages and items of which the ledger cannot say how they ended."""


def totals_of_log(rows: pa.Table) -> Totals:
    """Counted from the rows alone; the same user, item and time once more is a duplicate."""
    seen, clicked, clicks = Counter[tuple[str, str, int]](), set(), Counter[tuple[str, str, int]]()
    columns = (rows[name].to_pylist() for name in ("user_id", "item_id", "time_ms", "shown", "clicked"))
    for user_id, item_id, time_ms, was_shown, was_clicked in zip(*columns, strict=True):
        event = (user_id, item_id, time_ms)
        seen[event] += was_shown
        clicks[event] += was_clicked
        if was_shown and was_clicked:
            clicked.add(event)
    shown = sum(count > 0 for count in seen.values())
    applied = sum(count > 0 for count in clicks.values())
    return Totals(
        items_seen=seen.total(),
        items_clicked=len(clicked),
        items_unclicked=shown - len(clicked),
        items_duplicate=seen.total() - shown,
        items_late=0,
        clicks_applied=applied,
        clicks_duplicate=clicks.total() - applied,
        clicks_late=0,
    )


def totals_of_states(states: Iterable[UserState]) -> Totals:
    """The accounts of all users; what is still open counts as it stands."""
    counted: Counter[str] = Counter()
    for state in states:
        counted.update(asdict(state.accounts))
        counted["clicks_applied"] += state.clicks_applied
        for slate in state.slates:
            hits = len({click.slot for click in slate.clicks} & set(slate.seen))
            counted.update(items_clicked=hits, items_expired=len(slate.seen) - hits)
    counted["items_unclicked"] = counted["items_expired"]
    return Totals(**{name: counted[name] for name in Totals._fields})


def join(rows: pa.Table, directory: Path) -> Joined:
    """Plays the rows through a system of its own."""
    with running_system(directory, stream=SETTINGS) as system:
        began = time.monotonic()
        system.play(rows, pace=Pace(None))
        system.wait_until_caught_up(["stream", "scoring"])
        return Joined(
            seconds=time.monotonic() - began,
            totals=totals_of_states(newest_states(system.kafka).values()),
            unaccounted=sum(abs(account.waiting) for account in read_accounts(system.kafka)),
        )


def rows_of(joined: Joined, log: Totals) -> list[Row]:
    """One row per total, side by side."""
    totals = zip(Totals._fields, joined.totals, log, strict=True)
    return [
        *(
            equal(name.replace("_", " "), ours, Baseline("counted in the log", counted))
            for name, ours, counted in totals
        ),
        equal("unaccounted in the ledger", joined.unaccounted, Baseline("none", 0)),
    ]


def load_rows(options: argparse.Namespace) -> pa.Table:
    """The log after the histories of its users."""
    log = load_log(options.file).rows.slice(0, options.limit)
    if options.histories is None:
        return log
    histories = load_histories(options.histories)
    if options.limit is not None:
        histories = histories.filter(pc.is_in(histories["user_id"], value_set=pc.unique(log["user_id"])))
    return after_histories(log, histories)


def main() -> None:
    """Plays, counts both ways, reports."""
    parser = arguments("Totals of the join against totals counted from the file.")
    parser.add_argument("file", type=Path, metavar="FILE", help="impressions with clicks, as KuaiRand has them")
    parser.add_argument("--histories", type=Path, help="what users had before")
    parser.add_argument("--limit", type=int, help="rows of FILE, in the order of time")
    options = parser.parse_args()
    if options.quick and options.limit is None:
        options.limit = QUICK_ROWS
    rows = load_rows(options)
    with tempfile.TemporaryDirectory(prefix="joins-") as folder:
        joined = join(rows, Path(folder))
    rate = row("rows through the whole system", rows.num_rows / joined.seconds, unit="1/s")
    report("joins", [*rows_of(joined, totals_of_log(rows)), rate])


if __name__ == "__main__":
    explained(main)
