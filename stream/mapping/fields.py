"""Paths into a company's event: dotted ones, and JMESPath where that is not enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from stream.dead_letters import UnreadableError

Envelope = Mapping[str, Any]
"""What there is of a message besides the event: message, key, headers, timestamp."""
Path = Callable[[Any, Envelope], Any]
"""The value in an event, or None where it has none."""

OUTSIDE = "$"
_DOTTED = re.compile(r"[\w-]+(\.[\w-]+)*")


def read_path(text: str) -> Path:
    """The path that a text means; `$` in front lets it begin at the envelope instead of the event.

    Raises:
        ValueError: neither a dotted path nor JMESPath, and where it goes wrong.
    """
    inside = text.removeprefix(OUTSIDE)
    find = _dotted(inside) if _DOTTED.fullmatch(inside) else _jmespath(inside)
    if inside is text:
        return lambda event, _envelope: find(event)
    return lambda _event, envelope: find(envelope)


def _dotted(text: str) -> Callable[[Any], Any]:
    steps = text.split(".")

    def find(value: Any) -> Any:  # noqa: ANN401 - whatever stands in an event
        for step in steps:
            value = _step(value, step)
        return value

    return find


def _step(value: Any, step: str) -> Any:  # noqa: ANN401 - whatever stands in an event
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    return None


def _jmespath(text: str) -> Callable[[Any], Any]:
    try:
        compiled = jmespath.compile(text)
    except JMESPathError as error:
        raise ValueError(f"`{text}` is neither a dotted path nor JMESPath: {' '.join(str(error).split())}") from error

    def find(value: Any) -> Any:  # noqa: ANN401 - whatever stands in an event
        try:
            return compiled.search(value)
        except (JMESPathError, TypeError, RecursionError) as error:
            raise UnreadableError("invalid", f"`{text}` does not fit this event: {error}") from error

    return find
