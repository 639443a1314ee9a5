"""`sasrec-stream replay`: a real log, played as if it happened now."""

from __future__ import annotations

import contextlib
import datetime
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from deploy.replay.events import events
from deploy.replay.formats import Columns, FormatName, Log, load_log
from deploy.replay.histories import after_histories, load_histories
from deploy.replay.player import Pace, Played, play
from deploy.replay.times import TimeUnit
from deploy.replay.titles import item_event, load_items
from stream.admin import require_topics
from stream.settings import KafkaSettings

AT_ONCE = "max"
INTERRUPTED = 130

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "iso": "ISO 8601"}


def replay(  # noqa: PLR0913, PLR0917 - the options of a command
    context: typer.Context,
    log: Annotated[Path, typer.Argument(help="MovieLens, KuaiRand, or any csv or parquet with the columns named.")],
    items: Annotated[Path | None, typer.Option(help="Titles: movies.dat, u.item, movies.csv or parquet.")] = None,
    histories: Annotated[Path | None, typer.Option(help="What users had before, as organic clicks (parquet).")] = None,
    speed: Annotated[str, typer.Option(help="How many times as fast as it happened; or max.")] = AT_ONCE,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to play, in the order of time.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Rows to leave out first: goes on where a replay stopped.")] = 0,
    format_name: Annotated[
        FormatName | None, typer.Option("--format", help="Forces a format; else it is recognised by the content.")
    ] = None,
    time_unit: Annotated[TimeUnit | None, typer.Option(help="Forces the unit of the times; else recognised.")] = None,
    user_column: Annotated[str | None, typer.Option(help="Its users, for any other csv or parquet.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Its items.")] = None,
    time_column: Annotated[str | None, typer.Option(help="Its times.")] = None,
    clicked_column: Annotated[
        str | None, typer.Option(help="Its rows were shown; this says which were clicked.")
    ] = None,
    propensity_column: Annotated[str | None, typer.Option(help="The probability with which a row was shown.")] = None,
    position_column: Annotated[str | None, typer.Option(help="The slot in which it was shown, from 0.")] = None,
    policy_column: Annotated[str | None, typer.Option(help="The recommender that showed it.")] = None,
) -> None:
    """Play a log into Kafka in the order of time, with its times kept; Ctrl-C stops it and says how to go on."""
    columns = named_columns(
        user=user_column,
        item=item_column,
        time=time_column,
        clicked=clicked_column,
        propensity=propensity_column,
        position=position_column,
        policy=policy_column,
    )
    pace = Pace(parse_speed(speed))
    loaded = load_log(log, columns=columns, format_name=format_name, time_unit=time_unit)
    rows = loaded.rows if histories is None else after_histories(loaded.rows, load_histories(histories))
    rows = rows.slice(skip, limit)
    typer.echo(f"{log.name}: {_describe(loaded, rows)}")
    require_topics(context.obj.kafka)
    with _interruptible() as stop:
        if items is not None:
            _play_titles(items, kafka=context.obj.kafka, stop=stop)
        played = _play_rows(rows, kafka=context.obj.kafka, pace=pace, stop=stop)
    typer.echo(_summary(played))
    if played.events < rows.num_rows:
        typer.echo(f"stopped; go on with --skip {skip + played.events}")
        raise typer.Exit(INTERRUPTED)


def parse_speed(text: str) -> float | None:
    """`max` is None: as fast as Kafka takes it.

    Raises:
        ValueError: neither max nor a number above zero.
    """
    if text == AT_ONCE:
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ValueError(f"--speed {text} is neither {AT_ONCE} nor a number above zero")
    return speed


def named_columns(*, user: str | None, item: str | None, time: str | None, **others: str | None) -> Columns | None:
    """The columns that the command line names; None where it names none.

    Raises:
        ValueError: some are named, but not all of the three that every log needs.
    """
    if not any((user, item, time, *others.values())):
        return None
    if user is None or item is None or time is None:
        raise ValueError("name all of --user-column, --item-column and --time-column, or none of the columns")
    return Columns(user=user, item=item, time=time, **others)


def _play_titles(path: Path, *, kafka: KafkaSettings, stop: threading.Event) -> None:
    titles = play(map(item_event, load_items(path)), kafka=kafka, pace=Pace(None), stop=stop)
    typer.echo(f"{path.name}: {titles.events:,} titles")


def _play_rows(rows: pa.Table, *, kafka: KafkaSettings, pace: Pace, stop: threading.Event) -> Played:
    with _progress() as progress:
        return play(progress.track(events(rows), total=rows.num_rows), kafka=kafka, pace=pace, stop=stop)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one ends the process as usual."""
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _describe(log: Log, rows: pa.Table) -> str:
    if rows.num_rows == 0:
        raise ValueError("--skip leaves none of the rows; skip fewer")
    span = f"{_day(rows['time_ms'][0].as_py())} to {_day(rows['time_ms'][-1].as_py())}"
    return f"{log.format}, times in {_UNITS[log.time_unit]}; {rows.num_rows:,} rows, {span}"


def _day(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1_000, datetime.UTC).strftime("%Y-%m-%d")


def _summary(played: Played) -> str:
    sent = ", ".join(f"{count:,} {topic}" for topic, count in played.messages.items())
    rate = played.events / played.seconds
    return f"{played.events:,} rows in {played.seconds:,.1f} s ({rate:,.0f}/s): {sent or 'nothing'}, all acknowledged"
