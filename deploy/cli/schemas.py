"""`sasrec-stream schemas`: JSON Schemas of the public records and an AsyncAPI document, written from the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.settings import Settings
from stream.asyncapi import write_asyncapi
from stream.evolution import breaking_changes
from stream.schemas import PUBLIC_RECORDS, schema_of, write_schemas


def schemas(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("docs/schemas"),
    *,
    since: Annotated[
        Path | None, typer.Option(help="Refuse what breaks readers or writers of the schemas in this folder.")
    ] = None,
) -> None:
    """Write the JSON Schema of every public topic's record, and an AsyncAPI 3 document of all topics, to FOLDER."""
    settings: Settings = context.obj
    if since is not None:
        refuse_breaking_changes(since)
    for file in (*write_schemas(folder), write_asyncapi(folder, settings.kafka)):
        typer.echo(file)


def refuse_breaking_changes(since: Path) -> None:
    """Holds the records of the code against schemas that were written before.

    Raises:
        ValueError: what breaks, field by field, or there are no schemas in the folder.
    """
    files = {name: since / f"{name}.schema.json" for name in PUBLIC_RECORDS}
    standing = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if not standing:
        raise ValueError(f"{since} holds no schemas; name a folder that `sasrec-stream schemas` wrote")
    broken = [
        f"{name}: {change}"
        for name, old in standing.items()
        for change in breaking_changes(old, schema_of(PUBLIC_RECORDS[name]))
    ]
    if broken:
        raise ValueError("; ".join(broken))
