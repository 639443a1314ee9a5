"""The command line: global options, the settings they lead to, and every command by its name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from deploy.local.tether import tie_to_parent
from deploy.settings import Settings, load_settings

BAD_USAGE = 2

COMMANDS = {
    "up": "deploy.cli.up:up",
    "run": "deploy.cli.run:run",
    "retrain": "deploy.cli.retrain:retrain",
    "rerun": "deploy.cli.rerun:rerun",
    "kafka": "deploy.cli.kafka:app",
    "topics": "deploy.cli.topics:app",
    "accounts": "deploy.cli.accounts:accounts",
    "dlq": "deploy.cli.dlq:app",
    "produce": "deploy.cli.produce:produce",
    "replay": "deploy.cli.replay:replay",
    "watch": "deploy.cli.watch:watch",
    "why": "deploy.cli.why:why",
    "settings": "deploy.cli.settings:settings",
    "schemas": "deploy.cli.schemas:schemas",
}
"""Where each command stands: a function, or a typer app for a command with sub-commands."""


CLIENTS = frozenset({"run", "retrain", "rerun", "topics", "accounts", "dlq", "produce", "replay", "watch", "why"})
"""Commands that talk to a Kafka which runs already."""


class CommandsOnDemand(TyperGroup):
    """Imports a command when it is named, so that none waits for the libraries of another."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 - typer's own signature
        """All of them, in the order in which the help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | TyperGroup | None:  # noqa: ARG002 - see above
        """The command of that name, or None where there is none."""
        return _load(cmd_name) if cmd_name in COMMANDS else None


def _load(name: str) -> TyperCommand | TyperGroup:
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: object = typer.main.get_group(found)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name=name)(found)
        command = typer.main.get_command(alone)
    assert isinstance(command, TyperCommand | TyperGroup)
    command.name = name
    return command


app = typer.Typer(
    cls=CommandsOnDemand,
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
    tethered: Annotated[bool, typer.Option(hidden=True, help="End when standard input closes.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """A recommender that keeps learning while it serves."""
    if tethered:
        tie_to_parent()
    kafka = {} if bootstrap_servers is None else {"bootstrap_servers": bootstrap_servers}
    state = {} if state_directory is None else {"directory": state_directory}
    settings = load_settings(settings_path, kafka=kafka, state=state)
    context.obj = with_local_kafka(settings) if context.invoked_subcommand in CLIENTS else settings


def with_local_kafka(settings: Settings) -> Settings:
    """Where no Kafka is configured, the address of the local one that runs in the state folder, whatever its port."""
    from deploy.local.kafka import LocalKafka  # noqa: PLC0415 - `--help` needs none of it

    if "bootstrap_servers" in settings.kafka.model_fields_set:
        return settings
    running = LocalKafka(settings.kafka_directory).status().bootstrap_servers
    found = {} if running is None else {"bootstrap_servers": running}
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=found)})


def main() -> None:
    """Runs a command; what a person can put right is one line on stderr and exit status 2, never a traceback."""
    try:
        app()
    except ValueError as error:
        typer.echo(f"sasrec-stream: {error}", err=True)
        sys.exit(BAD_USAGE)
