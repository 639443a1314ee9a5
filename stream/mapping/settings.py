"""Settings of the mapping: which topics of a company are read, and which field of theirs is which of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import Field, model_validator

from stream.mapping.fields import read_path
from stream.mapping.times import check_format
from stream.schemas import PUBLIC_RECORDS
from stream.settings import Section

RecordName = Literal["clicks", "impressions", "requests", "recommendations", "items"]
Decoder = Literal["json", "cloudevents", "confluent"]

TIME_FIELDS: dict[str, str] = {
    "clicks": "timestamp_ms",
    "impressions": "timestamp_ms",
    "requests": "timestamp_ms",
    "recommendations": "generated_at_ms",
}
"""The field of each record that `timestamp` speaks of."""
FROM_POSITION = "event_id"
"""Where no event names it, the source position does: topic, partition, offset and the place in the message."""
KAFKA_TIME = "kafka"


class SourceSettings(Section):
    """One kind of event on one topic. Several sources may read one topic, each the events that it wants."""

    topic: Annotated[str, Field(min_length=1, max_length=249)]
    """Its full name on the broker; `kafka.topic_prefix` is not put before it."""
    record: RecordName
    """What its events become."""
    decoder: Decoder = "json"
    """`cloudevents`: binary or structured, as each message says; `confluent`: Avro, Protobuf or JSON Schema behind
    the five bytes that name a schema in `mapping.registry_url`.
    """
    only_if: str | None = None
    """JMESPath: events for which it is not true are passed over. All are read where absent."""
    each: str | None = None
    """Where in a message the list of its events stands (`@`: the message is it); absent: a message is one event."""
    fields: Annotated[dict[str, str], Field(default_factory=dict)]
    """Our field = dotted path or JMESPath in the event; `$message`, `$key`, `$headers`, `$timestamp` begin a path
    outside it.
    """
    constants: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Our field = value, the same for every event."""
    timestamp: str = "ms"
    """What the time is written in: ms, s, us, ns, iso8601, a strptime format such as `%d.%m.%Y %H:%M:%S` (UTC where it
    names no zone), or `kafka` for the message's own timestamp.
    """

    @model_validator(mode="after")
    def _fits_its_record(self) -> Self:
        known = PUBLIC_RECORDS[self.record].__struct_fields__
        named = [*self.fields, *self.constants]
        if unknown := [name for name in named if name not in known]:
            raise ValueError(f"{self.record} have no field {unknown[0]}; they have {', '.join(known)}")
        if missing := [name for name in _required(self) if name not in named]:
            raise ValueError(f"{self.record} need {missing[0]}; name it in fields or constants")
        for path in (*self.fields.values(), *filter(None, (self.only_if, self.each))):
            read_path(path)
        check_format(self.timestamp)
        return self


def _required(source: SourceSettings) -> list[str]:
    given = {FROM_POSITION} | ({TIME_FIELDS.get(source.record)} if source.timestamp == KAFKA_TIME else set())
    fields = msgspec.structs.fields(PUBLIC_RECORDS[source.record])
    return [field.name for field in fields if field.required and field.name not in given]


class MappingSettings(Section):
    """Topics of a company's own, read as ours by `sasrec-stream run mapper`: docs/mapping.md."""

    sources: tuple[SourceSettings, ...] = ()
    """One `[[mapping.sources]]` table for each kind of event; its keys stand in docs/mapping.md."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a topic is read from that was never read before."""
    registry_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """A schema registry with Confluent's API, for the decoder `confluent`."""
    registry_user: str | None = None
    """`user:password` for the registry."""
    max_events: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Most events in one message; one with more goes to the dead letters."""
    chunk_records: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Most messages that are mapped and committed together."""
    transaction_seconds: Annotated[float, Field(gt=0.5, le=900.0)] = 10.0
    """How long the broker waits for a mapper that died in the middle, in seconds, before readers go on without it."""
