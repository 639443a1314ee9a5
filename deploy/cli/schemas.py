"""`sasrec-stream schemas`: the JSON Schemas of the public records, written from the code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.schemas import write_schemas


def schemas(folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("docs/schemas")) -> None:
    """Write the JSON Schema of every public topic's record to FOLDER."""
    for file in write_schemas(folder):
        typer.echo(file)
