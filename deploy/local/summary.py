"""The end of a run in figures, and whether it was a good one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from deploy.observe.snapshot import Snapshot
from deploy.observe.table import POPULAR, RANKERS, SASREC, clock, restarts

ExitReason = Literal["time is up", "interrupted", "stopped"]
"""Interrupted: before its time; stopped: where no time was set."""
FEWEST_VERSIONS = 2


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages were written to `clicks` and `impressions`, and what became of them (I2), ever."""

    written: Mapping[str, int]
    """By topic, messages that Kafka took."""
    accounted: Mapping[str, int]
    """By topic, messages whose outcome stands in a user's state or in the dead letters."""
    applied: int
    duplicates: int
    late: int
    dead_lettered: int

    def since(self, before: Ledger) -> Ledger:
        """What came after an earlier ledger."""
        return Ledger(
            written={name: count - before.written[name] for name, count in self.written.items()},
            accounted={name: count - before.accounted[name] for name, count in self.accounted.items()},
            applied=self.applied - before.applied,
            duplicates=self.duplicates - before.duplicates,
            late=self.late - before.late,
            dead_lettered=self.dead_lettered - before.dead_lettered,
        )

    def lost(self, acknowledged: Mapping[str, int]) -> int:
        """Messages that Kafka acknowledged and does not hold, and those it holds that have no outcome."""
        by_kafka = sum(max(0, acknowledged.get(name, 0) - count) for name, count in self.written.items())
        return by_kafka + sum(max(0, count - self.accounted[name]) for name, count in self.written.items())

    def doubled(self) -> int:
        """Outcomes for which there is no message."""
        return sum(max(0, self.accounted[name] - count) for name, count in self.written.items())


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of `up --seconds N`: None stands for what could not be known."""

    exit_reason: ExitReason
    good: bool
    faults: Sequence[str]
    """Why it was not a good run."""
    seconds: float
    produced: Mapping[str, int]
    """What the audience sent and Kafka acknowledged, by topic."""
    applied: int | None
    duplicates: int | None
    late: int | None
    dead_lettered: int | None
    lost: int | None
    doubled: int | None
    recommendations: int
    model_versions: int
    processes_alive: Sequence[str]
    processes_dead: Sequence[str]
    restarts: int
    hr10: Mapping[str, float | None]
    latency_ms: Mapping[str, float]
    """Click in Kafka to recommendation in Kafka."""


class Run(NamedTuple):
    """What a summary is made of."""

    exit_reason: ExitReason
    seconds: float
    last: Snapshot
    """Seen before anything was stopped."""
    produced: Mapping[str, int] | None
    """None where no audience played."""
    ledger: Ledger | None
    """None where the stream worker did not catch up in time, or nobody waited for it."""


def summarise(run: Run) -> Summary:
    """The figures of a run, and what was wrong with it."""
    last, ledger, latency = run.last, run.ledger, run.last.latency
    faults = tuple(_faults(run))
    return Summary(
        exit_reason=run.exit_reason,
        good=not faults,
        faults=faults,
        seconds=round(run.seconds, 1),
        produced=run.produced or {},
        applied=ledger.applied if ledger else None,
        duplicates=ledger.duplicates if ledger else None,
        late=ledger.late if ledger else None,
        dead_lettered=ledger.dead_lettered if ledger else None,
        lost=ledger.lost(run.produced or {}) if ledger else None,
        doubled=ledger.doubled() if ledger else None,
        recommendations=last.recommendations,
        model_versions=len(last.versions),
        processes_alive=[process.name for process in last.processes if process.pid is not None],
        processes_dead=[process.name for process in last.processes if process.pid is None],
        restarts=restarts(last.processes),
        hr10={ranker: last.hit_rate.get(ranker) for ranker in (SASREC, POPULAR)},
        latency_ms={"p50": latency.p50_ms, "p99": latency.p99_ms} if latency else {},
    )


def _faults(run: Run) -> Iterator[str]:
    """Why a run was not good, each in a sentence."""
    if run.exit_reason == "interrupted":
        yield "it was interrupted before its time"
    if dead := [process.name for process in run.last.processes if process.pid is None]:
        yield f"not alive at the end: {', '.join(dead)}"
    if run.produced is not None and len(run.last.versions) < FEWEST_VERSIONS:
        yield f"recommendations of {len(run.last.versions)} model versions were seen; {FEWEST_VERSIONS} are expected"
    if run.ledger is None:
        yield "not every message had an outcome in time, so nothing can be said about losses"
    elif lost := run.ledger.lost(run.produced or {}):
        yield f"{lost} messages were lost"
    elif doubled := run.ledger.doubled():
        yield f"{doubled} messages were counted twice"


def words(summary: Summary) -> str:
    """The summary for people; what is not known is left out."""
    rows = {
        "ran": f"{clock(summary.seconds)}, {summary.exit_reason}",
        "produced": ", ".join(f"{name} {count:,}" for name, count in summary.produced.items()),
        "accounts": _accounts(summary),
        "recommended": f"{summary.recommendations:,} slates by {summary.model_versions} model versions",
        "HR@10": ", ".join(f"{RANKERS[name]} {rate:.3f}" for name, rate in summary.hr10.items() if rate is not None),
        "latency": ", ".join(f"{name} {figure:.0f} ms" for name, figure in summary.latency_ms.items()),
        "processes": f"{len(summary.processes_alive)} alive at the end, {summary.restarts} restarts",
    }
    if summary.exit_reason != "stopped":
        rows["verdict"] = "good" if summary.good else "; ".join(summary.faults)
    return "\n".join(f"{name:<13}{what}" for name, what in rows.items() if what)


def _accounts(summary: Summary) -> str:
    if summary.lost is None:
        return ""
    return (
        f"{summary.applied:,} clicks applied, {summary.duplicates} duplicate, {summary.late} late; "
        f"{summary.dead_lettered} messages dead-lettered, {summary.lost} lost"
    )
