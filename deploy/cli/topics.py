"""`sasrec-stream topics`: makes the topics, says how to mend them, and shows how messages are read."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.sample import show_samples
from deploy.settings import Settings
from stream.admin import create_topics, require_topics

app = typer.Typer(
    help="Create the topics, check those that stand, or see how their messages are read.", no_args_is_help=True
)


@app.command()
def create(context: typer.Context) -> None:
    """Create the topics that are missing; those that stand are left as they are, and checked."""
    settings: Settings = context.obj
    created = create_topics(settings.kafka)
    for name in created:
        typer.echo(f"created {name}")
    require_topics(settings.kafka)
    typer.echo(f"{len(created)} created, all as they must be")


@app.command()
def check(context: typer.Context) -> None:
    """Check partitions and clean-up of every topic; exit status 2 with a cure for each that is wrong."""
    settings: Settings = context.obj
    require_topics(settings.kafka)
    typer.echo("all topics are as they must be")


@app.command()
def sample(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="The full name of a topic of yours, or one of ours: clicks, items, ...")],
    *,
    messages: Annotated[
        int, typer.Option("-n", "--messages", min=1, max=10_000, help="How many of the last ones.")
    ] = 5,
) -> None:
    """Show how the mapping reads the last messages of TOPIC, field by field, and why some do not fit."""
    settings: Settings = context.obj
    show_samples(settings, topic, messages=messages)
