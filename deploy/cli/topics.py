"""`sasrec-stream topics`: makes the topics, or says how to mend them."""

from __future__ import annotations

import typer

from deploy.settings import Settings
from stream.admin import create_topics, require_topics

app = typer.Typer(help="Create the topics, or check those that stand.", no_args_is_help=True)


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
