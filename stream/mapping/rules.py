"""One kind of event -> our record: what a `[[mapping.sources]]` table says, made ready once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from stream.dead_letters import UnreadableError
from stream.events import Record
from stream.mapping.fields import Envelope, read_path
from stream.mapping.settings import FROM_POSITION, KAFKA_TIME, TIME_FIELDS, SourceSettings
from stream.mapping.times import to_ms
from stream.schemas import PUBLIC_RECORDS
from stream.topics import IMPRESSIONS, ITEMS, RECOMMENDATIONS

_IDS = ("event_id", "user_id", "item_id", "request_id")
_LISTS_OF_IDS = ("candidates", "exclude")
_LISTS_OF_ITEMS = {IMPRESSIONS: "items", RECOMMENDATIONS: "items"}


class Found(NamedTuple):
    """What stands under one of our fields in an event."""

    field: str
    path: str
    """Where it was looked for, or how it is known."""
    value: Any
    """As it stood there; None where there is none."""


class Rule:
    """Reads the events of one source; knows no bytes and no Kafka."""

    def __init__(self, source: SourceSettings) -> None:
        self.source = source
        self.record: type[Record] = PUBLIC_RECORDS[source.record]
        self._paths = {field: read_path(path) for field, path in source.fields.items()}
        self._only_if = None if source.only_if is None else read_path(source.only_if)
        self._each = None if source.each is None else read_path(source.each)
        self._time_field = TIME_FIELDS.get(source.record)

    @property
    def key_field(self) -> str:
        """Of the record: what its messages are keyed by."""
        return "item_id" if self.source.record == ITEMS else "user_id"

    def events(self, envelope: Envelope, *, most: int) -> list[Any]:
        """The events in a message, in order.

        Raises:
            UnreadableError: there is no list where the source says, or it has more than `most`.
        """
        if self._each is None:
            return [envelope["message"]]
        events = self._each(envelope["message"], envelope)
        if not isinstance(events, list):
            raise UnreadableError("invalid", f"`{self.source.each}` is no list of events")
        if len(events) > most:
            raise UnreadableError("invalid", f"{len(events)} events in one message; raise mapping.max_events ({most})")
        return events

    def wants(self, event: Any, envelope: Envelope) -> bool:  # noqa: ANN401 - whatever stands in a message
        """Whether the event is of the kind that this source reads."""
        return self._only_if is None or self._only_if(event, envelope) is True

    def look(self, event: Any, envelope: Envelope, *, position: str) -> Iterator[Found]:  # noqa: ANN401 - see above
        """Every field of ours, with what stands for it in the event; `position` names the event if nothing does."""
        for field, value in self.source.constants.items():
            yield Found(field, "constant", value)
        for field, find in self._paths.items():
            yield Found(field, self.source.fields[field], find(event, envelope))
        named = {*self.source.fields, *self.source.constants}
        if FROM_POSITION in self.record.__struct_fields__ and FROM_POSITION not in named:
            yield Found(FROM_POSITION, "source position", position)
        if self.source.timestamp == KAFKA_TIME and self._time_field and self._time_field not in named:
            yield Found(self._time_field, "Kafka's timestamp", envelope["timestamp"])

    def convert(self, found: Found) -> Any:  # noqa: ANN401 - a value as our records hold it
        """The value as our record has it.

        Raises:
            UnreadableError: it does not fit, and why.
        """
        if found.field == self._time_field and found.field in self._paths:
            try:
                return to_ms(found.value, self.source.timestamp)
            except ValueError as error:
                raise UnreadableError("invalid", f"{found.field} (`{found.path}`): {error}") from error
        if found.field == _LISTS_OF_ITEMS.get(self.source.record) and isinstance(found.value, list):
            return [_slot(one) for one in found.value]
        if found.field in _LISTS_OF_IDS and isinstance(found.value, list):
            return [_text(one) for one in found.value]
        return _text(found.value) if found.field in _IDS else found.value

    def make(self, found: list[Found]) -> Record:
        """The record with these values; a field without a value has its default.

        Raises:
            UnreadableError: a value does not fit, or one that is needed is absent.
        """
        paths = {one.field: one.path for one in found}
        values = {one.field: self.convert(one) for one in found if one.value is not None}
        try:
            return msgspec.convert(values, self.record, strict=False)
        except (msgspec.ValidationError, RecursionError) as error:
            raise UnreadableError("invalid", _explained(str(error), paths)) from error


def _explained(message: str, paths: dict[str, str]) -> str:
    """The same with the path in the company's event behind the field of ours that the message names."""
    named = [
        field for field in paths if f"`{field}`" in message or f"$.{field}" in message or message.startswith(field)
    ]
    return f"{message} (from `{paths[named[0]]}`)" if named else message


def _text(value: Any) -> Any:  # noqa: ANN401 - what is no id is refused by the record
    """Ids are text with us, and numbers with many."""
    is_id = isinstance(value, int | UUID) and not isinstance(value, bool)
    return str(value) if is_id else value


def _slot(value: Any) -> Any:  # noqa: ANN401 - see above
    """An item of a slate: an object whose absent fields may be null, or its id alone."""
    if not isinstance(value, dict):
        return {"item_id": _text(value)}
    return {field: _text(one) if field in _IDS else one for field, one in value.items() if one is not None}


def as_text(value: Any) -> Any:  # noqa: ANN401 - see above
    """Dates as a person reads them, for `sasrec-stream topics sample`."""
    return value.isoformat() if isinstance(value, date | datetime) else value
