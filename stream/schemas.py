"""JSON Schemas of the public records, generated from the records themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from stream import topics
from stream.events import Click, Impression, Item, ModelAnnouncement, Recommendation, Record, Request

PUBLIC_RECORDS: dict[str, type[Record]] = {
    topics.CLICKS: Click,
    topics.IMPRESSIONS: Impression,
    topics.REQUESTS: Request,
    topics.RECOMMENDATIONS: Recommendation,
    topics.ITEMS: Item,
    topics.MODELS: ModelAnnouncement,
}


def schema_of(record: type[Record]) -> dict[str, Any]:
    """One self-contained schema (draft 2020-12), its root inlined so that any generator of types can read it."""
    (root,), definitions = components_of([record], ref_template="#/$defs/{name}")
    name = root["$ref"].rpartition("/")[2]
    own = definitions.pop(name)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    return schema | ({"$defs": definitions} if definitions else {})


def components_of(
    records: Iterable[type[Record]], *, ref_template: str
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """Msgspec's schemas, described alike by every Python: until 3.13 a docstring keeps the indentation of its lines."""
    roots, definitions = msgspec.json.schema_components(records, ref_template=ref_template)
    for schema in definitions.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    return roots, definitions


def schema_text(record: type[Record]) -> str:
    """The schema as it stands in a file."""
    return msgspec.json.format(msgspec.json.encode(schema_of(record)), indent=2).decode() + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Writes `<topic>.schema.json` for every public topic and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name}.schema.json": schema_text(record) for name, record in PUBLIC_RECORDS.items()}
    for file, text in files.items():
        file.write_text(text)
    return list(files)
