"""`sasrec-stream settings`: every setting in force with what it means, as a settings file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel

from deploy.settings import Settings, environment_variable

WIDTH = 100


def settings(context: typer.Context) -> None:
    """Print every setting in force, its meaning and its unit, as a TOML file to start from."""
    typer.echo(settings_document(context.obj), nl=False)


def settings_document(settings: Settings) -> str:
    """TOML that leads to `settings`; a value nobody set stands as `#key = default`, so that defaults may move."""
    return "\n".join(_document_lines(settings)) + "\n"


def _document_lines(settings: Settings) -> Iterator[str]:
    example = environment_variable("trainer.loss")
    yield from _comment(
        "Settings of sasrec-stream: `#key = value` is a default; take away the # to change it. The environment "
        f"wins over this file ({example}=bce), the command line over both."
    )
    for name in type(settings).model_fields:
        yield from _section_lines(name, getattr(settings, name))


def _section_lines(name: str, section: BaseModel) -> Iterator[str]:
    yield ""
    yield from _comment(type(section).__doc__ or "")
    yield f"[{name}]"
    for key, field in type(section).model_fields.items():
        yield from _comment(field.description or "")
        yield _assignment(key, getattr(section, key), mark="" if key in section.model_fields_set else "#")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)]


def _assignment(key: str, value: object, *, mark: str) -> str:
    if value is None:
        return f"#{key} ="
    return f"{mark}{key} = {_toml(value)}"


def _toml(value: object) -> str:
    """On one line; of a table only what somebody set."""
    if isinstance(value, BaseModel):
        return _toml({key: getattr(value, key) for key in sorted(value.model_fields_set)})
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
