"""`sasrec-stream kafka`: a real Apache Kafka on this machine, for people without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from deploy.local.kafka import LocalKafka
from deploy.local.kafka_fetch import Report
from deploy.settings import Settings

NOT_RUNNING = 3

app = typer.Typer(help="Start, stop or find the local Apache Kafka.", no_args_is_help=True)


@app.command()
def start(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Else the earlier one, else 9092, else a free one.")] = None,
) -> None:
    """Start it in the background, fetching Kafka and Java where there are none, and print its address."""
    settings: Settings = context.obj
    with progress() as report:
        kafka = LocalKafka(settings.kafka_directory, port, report=report)
        address = kafka.start()
    typer.echo(f"Kafka answers at {address} (pid {kafka.pid}, log {kafka.log})")


@app.command()
def stop(context: typer.Context) -> None:
    """Stop it, whoever started it; its topics stay."""
    settings: Settings = context.obj
    kafka = LocalKafka(settings.kafka_directory)
    was_running = kafka.is_running
    kafka.stop()
    typer.echo("Kafka stopped" if was_running else f"no Kafka runs in {settings.kafka_directory}")


@app.command()
def status(context: typer.Context) -> None:
    """Say whether it runs, and where: exit status 0 if it does, 3 if not."""
    settings: Settings = context.obj
    found = LocalKafka(settings.kafka_directory).status()
    if found.pid is None:
        typer.echo(f"no Kafka runs in {settings.kafka_directory}; start it with `sasrec-stream kafka start`")
        raise typer.Exit(NOT_RUNNING)
    typer.echo(f"Kafka runs at {found.bootstrap_servers} (pid {found.pid}, log {found.log})")


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Shows what is being done on standard error: on a terminal a line that changes, elsewhere line by line."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what: console.print(f"Kafka: {what}", soft_wrap=True)
        return
    with console.status("Kafka: starting") as line:
        yield lambda what: line.update(f"Kafka: {what}")
