"""How a message is read, field by field, for `sasrec-stream topics sample`. Pure: nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from stream.dead_letters import UnreadableError
from stream.mapping.fields import Envelope
from stream.mapping.reading import Mapper, StampedRecord, position_of
from stream.mapping.registry import RegistryError
from stream.mapping.rules import Found, Rule
from stream.schemas import PUBLIC_RECORDS
from stream.topics import ITEMS


class Line(NamedTuple):
    """One of our fields."""

    field: str
    path: str
    """Where it was looked for."""
    value: Any
    """What stood there."""
    becomes: Any
    """What our record has; the reason where it does not fit."""


class Sample(NamedTuple):
    """One event of a message as one source reads it."""

    record: str
    """Our topic that the source maps to."""
    ordinal: int | None
    """None where the message cannot even be taken apart."""
    verdict: str
    lines: list[Line]

    @property
    def fits(self) -> bool:
        """Whether it becomes a record."""
        return self.verdict == FITS


FITS = "fits"
PASSED_OVER = "passed over: only_if is not true"


def samples(mapper: Mapper, record: StampedRecord) -> Iterator[Sample]:
    """Every event of the message by every source of its topic."""
    for rule in mapper.rules[record.topic]:
        if record.value is None and rule.source.record == ITEMS:
            yield Sample(ITEMS, 0, FITS, [Line("item_id", "the key", record.key, "a tombstone: withdrawn")])
            continue
        try:
            envelope = mapper.envelope(rule.source.decoder, record)
            events = mapper.events(rule, envelope)
        except (UnreadableError, RegistryError) as error:
            yield Sample(rule.source.record, None, str(error), [])
            continue
        for ordinal, event in enumerate(events):
            yield _sample(rule, event, envelope, ordinal=ordinal, position=position_of(record, ordinal))


def own_sample(name: str, record: StampedRecord) -> Sample:
    """A message of one of our own topics, which need no mapping."""
    if record.value is None:
        return Sample(name, 0, FITS if name == ITEMS else "the value is null", [])
    try:
        known = msgspec.json.decode(record.value, type=PUBLIC_RECORDS[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Sample(name, 0, str(error), [])
    lines = [Line(field, field, None, getattr(known, field)) for field in known.__struct_fields__]
    id_of_key = getattr(known, "item_id" if name == ITEMS else "user_id", None)
    is_keyed = id_of_key is None or record.key == id_of_key.encode()
    return Sample(name, 0, FITS if is_keyed else "the key is not the id in UTF-8", lines)


def _sample(rule: Rule, event: Any, envelope: Envelope, *, ordinal: int, position: str) -> Sample:  # noqa: ANN401
    name = rule.source.record
    try:
        if not rule.wants(event, envelope):
            return Sample(name, ordinal, PASSED_OVER, [])
        found = list(rule.look(event, envelope, position=position))
    except UnreadableError as error:
        return Sample(name, ordinal, str(error), [])
    lines = [Line(one.field, one.path, one.value, _becomes(rule, one)) for one in found]
    try:
        rule.make(found)
    except UnreadableError as error:
        return Sample(name, ordinal, str(error), lines)
    return Sample(name, ordinal, FITS, lines)


def _becomes(rule: Rule, found: Found) -> Any:  # noqa: ANN401 - a value of a record
    if found.value is None:
        return "nothing there"
    try:
        return rule.convert(found)
    except UnreadableError as error:
        return f"does not fit: {error}"
