from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from deploy.local.supervisor import ProcessState
from deploy.observe.snapshot import Latency, Recommended, Snapshot, UserView
from deploy.observe.table import Moment, clock, line, table

NOW_MS = 1_760_000_000_000
MOMENT = Moment(ran_seconds=62.0, now_ms=NOW_MS, now_seconds=162.0)

STREAM = ProcessState("stream", "stream", "running", pid=41, started_at_seconds=100.0, restarts=0, reason=None)
TRAINER = ProcessState(
    "trainer", "trainer", "waiting", pid=None, started_at_seconds=100.0, restarts=2, reason="killed by SIGKILL: [red]"
)

FULL = Snapshot(
    processes=(STREAM, TRAINER),
    per_second={"clicks": 40.2, "impressions": 15.1, "requests": 1.9, "recommendations": 42.0},
    recommendations=1_234,
    lag={"stream": 0, "trainer": 1_200, "scoring": 3},
    examples_trained=2_345,
    examples_per_second=51.0,
    hit_rate={"sasrec": 0.3123, "popular": 0.0711, "transitions": 0.2},
    model_version="a1b2/17",
    versions=frozenset({"a1b2/16", "a1b2/17"}),
    learnt_through_ms=NOW_MS - 3_210,
    latency=Latency(p50_ms=12.0, p99_ms=61.0),
    user=UserView(
        user_id="user-00007",
        clicks=("Redshift, part 1", "Redshift, part 2"),
        slate=(Recommended(title="Redshift, part 3", source="exploit"), Recommended(title="Kelp", source="explore")),
        model_version="a1b2/17",
    ),
)


def drawn(snapshot: Snapshot, *, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, legacy_windows=False)
    console.print(table(snapshot, MOMENT, title="sasrec-stream", height=24))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_everything_a_person_wants_to_know() -> None:
    shown = drawn(FULL)

    for words in (
        "sasrec-stream · 01:02",
        "57/s (clicks 40, impressions 15, requests 2), out 42/s",
        "stream 0, trainer 1,200, scoring 3",
        "2,345 trained (51/s)",
        "SASRec 0.312 · popularity 0.071 · item to item 0.200",
        "a1b2/17, learnt from clicks until 3.2 s ago, 2 versions seen",
        "p50 12 ms, p99 61 ms",
        "user-00007 clicked",
        "Redshift, part 3  exploit",
        "killed by SIGKILL: [red]",
    ):
        assert words in shown


def test_the_newest_click_stands_first_beside_the_best_recommendation() -> None:
    shown = drawn(FULL).splitlines()

    newest = next(row for row in shown if "Redshift, part 2" in row)
    assert "Redshift, part 3" in newest


def test_before_anything_is_known_the_table_and_the_line_say_so() -> None:
    assert "Kafka does not answer" in drawn(Snapshot())
    assert "model - learnt through -" in line(Snapshot(), MOMENT)


def test_a_terminal_of_80_columns_and_24_lines_shows_it_all() -> None:
    six = tuple(STREAM._replace(name=f"stream-{number}") for number in range(6))
    many = UserView(
        user_id="user", clicks=("title",) * 20, slate=FULL.user.slate * 10 if FULL.user else (), model_version=None
    )

    shown = drawn(dataclasses.replace(FULL, processes=six, user=many), width=80).splitlines()

    assert len(shown) <= 24
    assert max(len(row) for row in shown) <= 80
    assert not any("…" in row for row in shown)


def test_the_line_says_the_same_in_one_line() -> None:
    shown = line(FULL, MOMENT)

    assert shown == (
        "01:02 · events 57/s (clicks 40, impressions 15, requests 2) · lag stream 0, trainer 1,200, scoring 3"
        " · trained 2,345 · HR@10 0.312 (popularity 0.071) · model a1b2/17 learnt through 3.2 s ago"
        " · click to recommendation p50 12 ms, p99 61 ms · 1/2 processes, 2 restarts"
        " · user-00007 clicked Redshift, part 2, gets Redshift, part 3, Kelp"
    )


def test_a_title_can_neither_colour_nor_command_the_terminal() -> None:
    evil = UserView(user_id="[bold]user", clicks=("[red]x\x1b[2J\nnext",), slate=(), model_version=None)

    shown = drawn(Snapshot(user=evil))

    assert "[bold]user" in shown
    assert "[red]x?[2J?next" in shown
    assert "\x1b" not in line(Snapshot(user=evil), MOMENT)


def test_hours_are_shown_once_there_are_any() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 61, 3_661)] == ["00:00", "00:59", "01:01", "1:01:01"]
