"""Draws a snapshot: a live table on a terminal, a line elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.local.supervisor import ProcessState
from deploy.observe.snapshot import Snapshot, UserView
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS, REQUESTS

UNKNOWN = "-"
EVENTS = (CLICKS, IMPRESSIONS, REQUESTS)
SASREC = "sasrec"
POPULAR = "popular"
FEWEST_SLOTS = 5
MOST_SLOTS = 10
OTHER_LINES = 13
RANKERS = {SASREC: "SASRec", POPULAR: "popularity", "transitions": "item to item"}


class Moment(NamedTuple):
    """When a snapshot is drawn."""

    ran_seconds: float
    """Since the start of everything."""
    now_ms: int
    """By the wall clock."""
    now_seconds: float
    """By the supervisor's clock."""


def table(snapshot: Snapshot, moment: Moment, *, title: str, height: int) -> RenderableType:
    """The whole screen, on a terminal of that many lines."""
    processes = _processes(snapshot.processes, now_seconds=moment.now_seconds)
    parts: list[RenderableType] = [_numbers(snapshot, now_ms=moment.now_ms), "", processes]
    if snapshot.user is not None:
        slots = min(MOST_SLOTS, max(FEWEST_SLOTS, height - len(snapshot.processes) - OTHER_LINES))
        parts[2:2] = [_user(snapshot.user, slots=slots), ""]
    heading = _text(f"{title} · {clock(moment.ran_seconds)}")
    return Panel(Group(*parts), title=heading, subtitle="Ctrl-C stops everything", title_align="left")


def line(snapshot: Snapshot, moment: Moment) -> str:
    """Everything in one line."""
    running = sum(process.pid is not None for process in snapshot.processes)
    parts = [
        clock(moment.ran_seconds),
        f"events {_events_per_second(snapshot)}",
        f"lag {_lags(snapshot)}",
        f"trained {_count(snapshot.examples_trained)}",
        f"HR@10 {_rate(snapshot, SASREC)} (popularity {_rate(snapshot, POPULAR)})",
        f"model {snapshot.model_version or UNKNOWN} learnt through {_age(snapshot, now_ms=moment.now_ms)}",
        f"click to recommendation {_latency(snapshot)}",
        f"{running}/{len(snapshot.processes)} processes, {restarts(snapshot.processes)} restarts",
    ]
    if snapshot.user is not None:
        parts.append(_user_words(snapshot.user))
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds, with the hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def restarts(processes: Sequence[ProcessState]) -> int:
    """Of all processes together."""
    return sum(process.restarts for process in processes)


def _numbers(snapshot: Snapshot, *, now_ms: int) -> Table:
    rates = " · ".join(f"{name} {_rate(snapshot, ranker)}" for ranker, name in RANKERS.items())
    live = f"{snapshot.model_version or UNKNOWN}, learnt from clicks until {_age(snapshot, now_ms=now_ms)}"
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_row(
        "events in", f"{_events_per_second(snapshot)}, out {snapshot.per_second.get(RECOMMENDATIONS, 0.0):.0f}/s"
    )
    rows.add_row("lag", _lags(snapshot))
    rows.add_row("latency", f"click to recommendation {_latency(snapshot)}")
    rows.add_row("examples", f"{_count(snapshot.examples_trained)} trained ({snapshot.examples_per_second:.0f}/s)")
    rows.add_row("HR@10", rates)
    rows.add_row("model live", _text(f"{live}, {len(snapshot.versions)} versions seen"))
    return rows


def _user(user: UserView, *, slots: int) -> Table:
    columns = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    columns.add_column(_text(f"{user.user_id} clicked, newest first"), ratio=1, no_wrap=True)
    columns.add_column(_text(f"is recommended, by {user.model_version or POPULAR}"), ratio=1, no_wrap=True)
    clicks = [_text(title) for title in reversed(user.clicks)]
    slate = [Text.assemble(_text(slot.title), (f"  {slot.source}", "dim")) for slot in user.slate]
    columns.add_row(Text("\n").join(clicks[:slots]), Text("\n").join(slate[:slots]))
    return columns


def _text(from_outside: str) -> Text:
    """Text of other people as it is: no markup, and nothing that a terminal would obey."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in from_outside))


def _processes(processes: Sequence[ProcessState], *, now_seconds: float) -> Table:
    rows = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("process", "state", "pid", "up", "restarts"):
        rows.add_column(heading, no_wrap=True)
    rows.add_column("last restart because", ratio=1, no_wrap=True, overflow="ellipsis")
    for process in processes:
        rows.add_row(*_process(process, now_seconds=now_seconds))
    return rows


def _process(process: ProcessState, *, now_seconds: float) -> tuple[RenderableType, ...]:
    state = Text(process.state, style="green" if process.state == "running" else "yellow")
    up = clock(now_seconds - process.started_at_seconds) if process.pid is not None else UNKNOWN
    pid = str(process.pid) if process.pid is not None else UNKNOWN
    return process.name, state, pid, up, str(process.restarts), _text(process.reason or "")


def _events_per_second(snapshot: Snapshot) -> str:
    rates = {name: snapshot.per_second.get(name, 0.0) for name in EVENTS}
    each = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return f"{sum(rates.values()):.0f}/s ({each})"


def _lags(snapshot: Snapshot) -> str:
    if snapshot.lag is None:
        return "Kafka does not answer"
    return ", ".join(f"{kind} {lag:,}" for kind, lag in snapshot.lag.items())


def _latency(snapshot: Snapshot) -> str:
    latency = snapshot.latency
    return f"p50 {latency.p50_ms:.0f} ms, p99 {latency.p99_ms:.0f} ms" if latency else UNKNOWN


def _rate(snapshot: Snapshot, ranker: str) -> str:
    rate = snapshot.hit_rate.get(ranker)
    return UNKNOWN if rate is None else f"{rate:.3f}"


def _age(snapshot: Snapshot, *, now_ms: int) -> str:
    through_ms = snapshot.learnt_through_ms
    return UNKNOWN if through_ms is None else f"{max(0, now_ms - through_ms) / 1_000:.1f} s ago"


def _count(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


def _user_words(user: UserView) -> str:
    clicked = user.clicks[-1] if user.clicks else UNKNOWN
    slate = ", ".join(slot.title for slot in user.slate[:3])
    return _text(f"{user.user_id} clicked {clicked}, gets {slate}").plain
