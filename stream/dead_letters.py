"""What becomes of a message that no retry can cure: its raw bytes with the reason, on `<topic>.dlq`.

The headers are those of Kafka Streams (KIP-1034), so that tools made for it read ours. A dead letter stands in the
partition of the number it came from; after a crash it may stand there twice, so readers count source positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

EXCEPTION = "__streams.errors.exception"
MESSAGE = "__streams.errors.message"
TOPIC = "__streams.errors.topic"
PARTITION = "__streams.errors.partition"
OFFSET = "__streams.errors.offset"

REPLAYS = "sasrec-replays"
"""How often the message was sent back to its topic; it stays with the message, so that nothing goes round for ever."""
REPLAYED_AS = "sasrec-replayed-as"
"""On a mark beside the letter: the letter was sent back, and as what."""
CUT_FROM = "sasrec-cut-from-bytes"
"""The value was too large to be kept whole: its size before."""

ERROR_HEADERS = frozenset({EXCEPTION, MESSAGE, TOPIC, PARTITION, OFFSET})
_MAX_REASON_CHARACTERS = 1_000

Headers = list[tuple[str, bytes]]
Reason = Literal["null", "malformed", "invalid", "key", "future", "not_finite", "spike"]
"""Null value; not JSON at all; JSON that breaks a bound; a key unlike user_id; dated ahead of the wall clock; an
example whose loss or gradient is not finite.
"""


class UnreadableError(ValueError):
    """A message that cannot be read; `reason` is its label on the counter."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@runtime_checkable
class RawRecord(Protocol):
    """A record as any Kafka client hands it over."""

    @property
    def topic(self) -> str:
        """The full name."""

    @property
    def partition(self) -> int:
        """The number."""

    @property
    def offset(self) -> int:
        """Its place there."""

    @property
    def key(self) -> bytes | None:
        """As sent."""

    @property
    def value(self) -> bytes | None:
        """As sent."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """As sent."""


class DeadLetter(NamedTuple):
    """The message for `<topic>.dlq`, to be sent to the partition of the same number."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class SourcePosition(NamedTuple):
    """Where a dead letter came from; one message has one, however often it was sent to the dead letters."""

    topic: str
    partition: int
    offset: int


def dead_letter(record: RawRecord, error: UnreadableError, *, max_bytes: int) -> DeadLetter:
    """The record as it came, with the reason in headers.

    One that leaves no room for the reason within `max_bytes` loses its own headers, then the end of its value.
    """
    cut_from = next((value for name, value in record.headers if name == CUT_FROM), None)
    message = str(error) if cut_from is None else f"{cut_from.decode()} bytes are more than is read; {error}"
    reason = [
        (EXCEPTION, error.reason.encode()),
        (MESSAGE, message[:_MAX_REASON_CHARACTERS].encode(errors="replace")),
        (TOPIC, record.topic.encode()),
        (PARTITION, str(record.partition).encode()),
        (OFFSET, str(record.offset).encode()),
    ]
    kept = [(name, value) for name, value in record.headers if name not in ERROR_HEADERS]
    if size_of(record.key, record.value, kept + reason) <= max_bytes:
        return DeadLetter(record.key, record.value, kept + reason)
    reason += [(name, value) for name, value in kept if name in {REPLAYS, CUT_FROM}]
    if size_of(record.key, record.value, reason) <= max_bytes:
        return DeadLetter(record.key, record.value, reason)
    reason.append((CUT_FROM, str(len(record.value or b"")).encode()))
    room = max_bytes - size_of(record.key, None, reason)
    return DeadLetter(record.key, record.value and record.value[: max(room, 0)], reason)


def source_position(headers: Sequence[tuple[str, bytes]]) -> SourcePosition:
    """Where a dead letter came from.

    Raises:
        ValueError: the headers do not say; somebody else wrote this message.
    """
    found = {name: value.decode() for name, value in headers if name in ERROR_HEADERS}
    try:
        return SourcePosition(found[TOPIC], int(found[PARTITION]), int(found[OFFSET]))
    except KeyError as error:
        raise ValueError(f"not a dead letter: header {error} is missing") from error


def size_of(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Bytes of a record in its batch, rounded up: every length takes at most five."""
    texts = sum(len(name.encode()) + len(content or b"") + 10 for name, content in headers)
    return len(key or b"") + len(value or b"") + texts + 64
