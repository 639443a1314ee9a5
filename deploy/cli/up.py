"""`sasrec-stream up`: everything on this machine, until Ctrl-C or for a while."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
import typer

from deploy.cli.signals import stop_on_signals
from deploy.local.demo import demo_environment
from deploy.local.machine import Machine
from deploy.local.operator import Operator
from deploy.local.summary import summarise, words
from deploy.observe.screen import Screen
from deploy.settings import Settings

NOT_GOOD = 1


def up(
    context: typer.Context,
    demo: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--demo", help="Let a simulated audience in, and a trainer that learns faster.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="End by itself after so long, with a summary and a verdict.")
    ] = None,
    stream_workers: Annotated[int | None, typer.Option(min=1, help="supervisor.stream_workers")] = None,
    scoring_workers: Annotated[int | None, typer.Option(min=1, help="supervisor.scoring_workers")] = None,
) -> None:
    """Start Kafka, every process and a live table; Ctrl-C stops them all.

    With --seconds, the last line of the output is the summary as one JSON object, and the exit status is 0 only if
    every process was alive at the end and no message was lost (with --demo: and two models or more recommended).
    """
    given = {"stream_workers": stream_workers, "scoring_workers": scoring_workers}
    settings = _with_workers(context.obj, {key: workers for key, workers in given.items() if workers is not None})
    if demo:
        os.environ.update(demo_environment(settings))  # the processes inherit it
    with stop_on_signals() as stop, Screen(title="sasrec-stream") as screen:
        machine = Machine(settings, arguments=_settings_option(context), tell=screen.tell)
        try:
            run = Operator(machine, screen, stop).run(audience=demo, seconds=seconds)
        finally:
            machine.stop()
    summary = summarise(run)
    typer.echo(words(summary))
    if seconds is not None:
        typer.echo(msgspec.json.encode(summary))
        raise typer.Exit(0 if summary.good else NOT_GOOD)


def _with_workers(settings: Settings, workers: dict[str, int]) -> Settings:
    supervisor = settings.supervisor.model_copy(update=workers)
    return settings.model_copy(update={"supervisor": supervisor})


def _settings_option(context: typer.Context) -> tuple[str, ...]:
    """The settings file named before `up`, so that every process reads it too."""
    assert context.parent is not None
    path = context.parent.params["settings_path"]
    return ("--settings", str(path)) if path is not None else ()
