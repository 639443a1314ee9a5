"""What came over HTTP -> records, or what is wrong with it and what to send instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from stream.events import Click, Impression, Request, check_id

MAX_EVENTS = 1_000
KINDS: dict[str, type[Click] | type[Impression]] = {"click": Click, "impression": Impression}
NUMBERS = ("k", "fresh_through_ms", "fresh_through_offset", "wait_ms")
LISTS = {"candidate": "candidates", "exclude": "exclude"}
WANTED = frozenset({*NUMBERS, *LISTS.values()})
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


class RefusedError(ValueError):
    """What the client can put right; `status` says of what kind it is."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_events(body: bytes, *, latest_ms: int) -> list[Click | Impression]:
    """The events in `{"events": [{"type": "click", ...}, ...]}`, all of them or none.

    Raises:
        RefusedError: 400 for what is no JSON, 422 for what is no such event; the message names the field.
    """
    told = _decoded(body, example='{"events": [...]}')
    events = told.get("events") if isinstance(told, dict) else None
    if not isinstance(events, list) or not 1 <= len(events) <= MAX_EVENTS:
        raise RefusedError(422, f'send {{"events": [...]}} with 1 to {MAX_EVENTS} events')
    return [_event(event, place=f"events[{nth}]", latest_ms=latest_ms) for nth, event in enumerate(events)]


def _event(told: object, *, place: str, latest_ms: int) -> Click | Impression:
    kind = told.get("type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise RefusedError(422, f'{place}: "type" must be "click" or "impression"')
    try:
        event = msgspec.convert(told, KINDS[kind])
    except (msgspec.ValidationError, ValueError) as error:
        raise RefusedError(422, f"{place}: {error}") from error
    if event.timestamp_ms > latest_ms:
        raise RefusedError(422, f"{place}: timestamp_ms lies in the future; mend the clock that made it")
    return event


class Asked(NamedTuple):
    """Whose slate is asked for, under which id, and when."""

    raw_path: bytes
    request_id: str
    now_ms: int


def read_query(asked: Asked, query: Sequence[tuple[str, str]]) -> Request:
    """The request for a slate in a path and its query.

    Raises:
        RefusedError: 400 for a user id that is not UTF-8, a parameter that is unknown, given twice or no number; 422
            for one out of bounds.
    """
    fields: dict[str, Any] = {}
    for name, value in query:
        if name in LISTS:
            fields.setdefault(LISTS[name], []).append(value)
        elif name not in NUMBERS:
            raise RefusedError(400, f"no parameter {name!r}; there are {', '.join((*NUMBERS, *LISTS))}")
        elif name in fields:
            raise RefusedError(400, f"{name} is given twice; send it once")
        else:
            fields[name] = _number(name, value)
    return _request(asked, fields)


def read_wanted(asked: Asked, body: bytes) -> Request:
    """The request for a slate in a path and a body: for lists that are too long for a URL.

    Raises:
        RefusedError: 400 for a user id that is not UTF-8 and for what is no JSON; 422 for a field that is unknown or
            out of bounds.
    """
    fields = _decoded(body, example='{"k": 10}')
    if not isinstance(fields, dict) or not fields.keys() <= WANTED:
        raise RefusedError(422, f"send an object with any of {', '.join(sorted(WANTED))}")
    return _request(asked, fields)


def _request(asked: Asked, fields: Mapping[str, Any]) -> Request:
    whose: dict[str, Any] = {
        "event_id": asked.request_id,
        "user_id": _user_id(asked.raw_path),
        "timestamp_ms": asked.now_ms,
    }
    try:
        request = msgspec.convert({**fields, **whose}, Request)
        for item_id in (*(request.candidates or ()), *request.exclude):
            check_id(item_id, field="item id")
    except (msgspec.ValidationError, ValueError) as error:
        raise RefusedError(422, str(error)) from error
    return request


def _decoded(body: bytes, *, example: str) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"not JSON: {error}; send {example}") from error


def _number(name: str, value: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(value):
        raise RefusedError(400, f"{name} {value[:40]!r} is no whole number")
    return int(value)


def _user_id(raw_path: bytes) -> str:
    """Taken from the path as it was sent: a server decodes it, and puts something else where it is not UTF-8."""
    quoted = raw_path.partition(b"/users/")[2].rpartition(b"/recommendations")[0]
    try:
        return unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError as error:
        raise RefusedError(400, "the user id in the path is not UTF-8; percent-encode its UTF-8 bytes") from error
