from __future__ import annotations

from typing import NamedTuple

import pytest

from stream.dead_letters import (
    EXCEPTION,
    MESSAGE,
    Headers,
    SourcePosition,
    UnreadableError,
    dead_letter,
    source_position,
)

MAX_BYTES = 10_000
ERROR = UnreadableError("invalid", "user_id is missing")


NO_HEADERS: Headers = []


class Raw(NamedTuple):
    topic: str = "recs.clicks"
    partition: int = 3
    offset: int = 42
    key: bytes | None = b"u"
    value: bytes | None = b"{}"
    headers: Headers = NO_HEADERS


def test_a_dead_letter_keeps_what_came_and_says_why_and_whence() -> None:
    letter = dead_letter(Raw(headers=[("trace", b"1")]), ERROR, max_bytes=MAX_BYTES)

    assert (letter.key, letter.value) == (b"u", b"{}")
    assert letter.headers[0] == ("trace", b"1")
    assert dict(letter.headers)[EXCEPTION] == b"invalid"
    assert dict(letter.headers)[MESSAGE] == b"user_id is missing"
    assert source_position(letter.headers) == SourcePosition("recs.clicks", 3, 42)


def test_a_letter_that_dies_twice_tells_of_its_last_death_only() -> None:
    first = dead_letter(Raw(), ERROR, max_bytes=MAX_BYTES)

    again = dead_letter(Raw(offset=43, headers=first.headers), ERROR, max_bytes=MAX_BYTES)

    assert len(again.headers) == len(first.headers)
    assert source_position(again.headers).offset == 43


def test_a_message_without_room_for_the_reason_loses_its_headers_first() -> None:
    letter = dead_letter(Raw(headers=[("trace", bytes(MAX_BYTES))]), ERROR, max_bytes=MAX_BYTES)

    assert letter.value == b"{}"
    assert "trace" not in dict(letter.headers)


def test_a_message_as_large_as_allowed_loses_its_end() -> None:
    letter = dead_letter(Raw(value=bytes(MAX_BYTES)), ERROR, max_bytes=MAX_BYTES)

    assert letter.value is not None
    assert MAX_BYTES // 2 < len(letter.value) < MAX_BYTES
    assert source_position(letter.headers).offset == 42


def test_a_tombstone_stays_one() -> None:
    assert dead_letter(Raw(value=None), ERROR, max_bytes=MAX_BYTES).value is None


def test_a_message_of_somebody_else_has_no_source_position() -> None:
    with pytest.raises(ValueError, match="not a dead letter"):
        source_position([("trace", b"1")])
