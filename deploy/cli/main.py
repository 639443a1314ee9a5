"""The command line: global options, the settings they lead to, and every command by its name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.schemas import schemas
from deploy.cli.settings import settings
from deploy.settings import load_settings

BAD_USAGE = 2

app = typer.Typer(
    help="A recommender that keeps learning while it serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def read_settings(
    context: typer.Context,
    settings_path: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file; else SASREC_SETTINGS, else sasrec-stream.toml where it exists."),
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="host:port,... of a Kafka of your own (kafka.bootstrap_servers).")
    ] = None,
    state_directory: Annotated[
        Path | None, typer.Option(help="Folder for everything on disk (state.directory).")
    ] = None,
) -> None:
    """A recommender that keeps learning while it serves."""
    kafka = {} if bootstrap_servers is None else {"bootstrap_servers": bootstrap_servers}
    state = {} if state_directory is None else {"directory": state_directory}
    context.obj = load_settings(settings_path, kafka=kafka, state=state)


app.command()(settings)
app.command()(schemas)


def main() -> None:
    """Runs a command; what a person can put right is one line on stderr and exit status 2, never a traceback."""
    try:
        app()
    except ValueError as error:
        typer.echo(f"sasrec-stream: {error}", err=True)
        sys.exit(BAD_USAGE)
