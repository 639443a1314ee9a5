"""A raw message -> the records it becomes, and what of it does not fit: everything, before anything is sent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from stream.dead_letters import CUT_FROM, RawRecord, Reason, UnreadableError
from stream.events import Record, check_id
from stream.mapping.decoders import Decode, decoder_of
from stream.mapping.fields import Envelope
from stream.mapping.registry import Registry
from stream.mapping.rules import Rule
from stream.mapping.settings import MappingSettings
from stream.topics import ITEMS


class StampedRecord(RawRecord, Protocol):
    """A raw record with Kafka's timestamp."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""


class Mapped(NamedTuple):
    """An event as it will stand on one of our topics."""

    record: str
    """Our topic, without the prefix."""
    ordinal: int
    """Its place in the message; with the message's position it names the event for ever."""
    key: str
    event: Record | None
    """None for the tombstone of an item."""


class Misfit(NamedTuple):
    """An event that no retry can cure."""

    ordinal: int | None
    """None where it is the whole message."""
    reason: Reason
    message: str


Outcome = Literal["mapped", "passed_over", "dead"]
"""All of its events that a source wants are read; no source wants any; something of it does not fit."""


class Reading(NamedTuple):
    """What became of one message."""

    mapped: list[Mapped]
    misfits: list[Misfit]

    @property
    def outcome(self) -> Outcome:
        """How the message ended."""
        return "dead" if self.misfits else "mapped" if self.mapped else "passed_over"


class Mapper:
    """All sources of a mapping, made ready once. The same message always gives the same reading."""

    def __init__(self, mapping: MappingSettings) -> None:
        registry = None if mapping.registry_url is None else Registry(mapping.registry_url, user=mapping.registry_user)
        self._max_events = mapping.max_events
        self.rules: dict[str, list[Rule]] = {}
        self._decoders: dict[tuple[str, str], Decode] = {}
        for source in sorted(mapping.sources, key=lambda source: source.decoder):
            self.rules.setdefault(source.topic, []).append(Rule(source))
            self._decoders[source.topic, source.decoder] = decoder_of(source, registry)

    @property
    def topics(self) -> list[str]:
        """What is read, by full names."""
        return list(self.rules)

    def read(self, record: StampedRecord) -> Reading:
        """Every source's reading of the message. Of a list of events, those that fit are read, whatever the others do.

        Raises:
            RegistryError: the schema registry does not answer.
        """
        reading = Reading([], [])
        rules = self.rules[record.topic]
        if record.value is None and any(rule.source.record == ITEMS for rule in rules):
            return _reading_of_tombstone(record)
        if any(name == CUT_FROM for name, _ in record.headers):
            # What was cut may still be read by formats without an end, such as Protobuf.
            return Reading([], [Misfit(None, "invalid", "its batch is larger than is read")])
        for decoder, readers in itertools.groupby(rules, key=lambda rule: rule.source.decoder):
            try:
                envelope = self.envelope(decoder, record)
            except UnreadableError as error:
                reading.misfits.append(Misfit(None, error.reason, str(error)))
                continue
            for rule in readers:
                self._read_by(rule, record, envelope, into=reading)
        return reading

    def envelope(self, decoder: str, record: StampedRecord) -> Envelope:
        """The decoded message with what surrounds it.

        Raises:
            UnreadableError: it cannot be decoded.
            RegistryError: the schema registry does not answer.
        """
        return {
            "message": self._decoders[record.topic, decoder](record),
            "key": None if record.key is None else record.key.decode(errors="replace"),
            "headers": {name: (value or b"").decode(errors="replace") for name, value in record.headers},
            "timestamp": record.timestamp,
        }

    def events(self, rule: Rule, envelope: Envelope) -> list[Any]:
        """The events of a message, as many as one may have.

        Raises:
            UnreadableError: there is no such list, or it is too long.
        """
        return rule.events(envelope, most=self._max_events)

    def _read_by(self, rule: Rule, record: StampedRecord, envelope: Envelope, *, into: Reading) -> None:
        try:
            events = self.events(rule, envelope)
        except UnreadableError as error:
            into.misfits.append(Misfit(None, error.reason, str(error)))
            return
        for ordinal, event in enumerate(events):
            try:
                if not rule.wants(event, envelope):
                    continue
                made = rule.make(list(rule.look(event, envelope, position=position_of(record, ordinal))))
            except UnreadableError as error:
                into.misfits.append(Misfit(ordinal, error.reason, str(error)))
            else:
                into.mapped.append(Mapped(rule.source.record, ordinal, getattr(made, rule.key_field), made))


def position_of(record: RawRecord, ordinal: int) -> str:
    """Names an event for ever by where it stands: topic, partition, offset and its place in the message."""
    return f"{record.topic}-{record.partition}-{record.offset}-{ordinal}"


def _reading_of_tombstone(record: RawRecord) -> Reading:
    """Withdraws the item that the key names."""
    try:
        item_id = (record.key or b"").decode()
        check_id(item_id, field="the key")
    except ValueError as error:  # UnicodeDecodeError is one
        return Reading([], [Misfit(None, "key", f"a tombstone names its item by the key: {error}")])
    return Reading([Mapped(ITEMS, 0, item_id, None)], [])


def misfit_error(misfits: Sequence[Misfit]) -> UnreadableError:
    """One reason for the dead letter of a message, however many of its events do not fit."""
    shown = [one.message if one.ordinal is None else f"event {one.ordinal}: {one.message}" for one in misfits[:3]]
    more = [f"and {len(misfits) - 3} more"] if len(misfits) > 3 else []
    return UnreadableError(misfits[0].reason, "; ".join([*shown, *more]))
