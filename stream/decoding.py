"""Raw records of the input topics -> events, or the reason why not."""

from __future__ import annotations

import functools
from typing import TypeVar

import msgspec

from stream.dead_letters import RawRecord, UnreadableError
from stream.events import Click, Impression, Recommendation, Request

Event = TypeVar("Event", Click, Impression, Recommendation, Request)

SECOND_MS = 1_000


@functools.cache
def _decoder(kind: type[Event]) -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(kind)


def decode_event(record: RawRecord, kind: type[Event], *, latest_ms: int) -> Event:
    """The event in a record, dated no later than `latest_ms`.

    Raises:
        UnreadableError: null, not JSON, out of bounds, a key unlike user_id, or from the future.
    """
    if record.value is None:
        raise UnreadableError("null", "the value is null; only compacted topics have tombstones")
    try:
        event: Event = _decoder(kind).decode(record.value)
    except msgspec.ValidationError as error:
        raise UnreadableError("invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError("malformed", f"not JSON: {error}") from error
    if record.key != event.user_id.encode():
        raise UnreadableError("key", "the key is not the user_id in UTF-8; send it, so that a user stays together")
    at_ms = event.generated_at_ms if isinstance(event, Recommendation) else event.timestamp_ms
    if at_ms > latest_ms:
        raise UnreadableError("future", f"dated {(at_ms - latest_ms) / SECOND_MS:.0f} s too far ahead; mend the clock")
    return event
