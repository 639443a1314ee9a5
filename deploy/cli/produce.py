"""`sasrec-stream produce`: one event, and where it went."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import msgspec
import typer
from kafka.errors import KafkaError

from stream import clients
from stream.admin import require_topics
from stream.cloud_events import Headers, event_headers
from stream.events import Click, Impression, Item, Record, Request
from stream.settings import KafkaSettings
from stream.topics import CLICKS, IMPRESSIONS, ITEMS, REQUESTS

ACKNOWLEDGED_SECONDS = 30.0

EventId = Annotated[str | None, typer.Option(help="A repeat with the same id changes nothing; a new one if absent.")]
AtMs = Annotated[int | None, typer.Option("--timestamp-ms", help="Event time, milliseconds since 1970; now if absent.")]
RequestId = Annotated[str | None, typer.Option(help="The slate it belongs to.")]

produce = typer.Typer(help="Send one event and print where it went.", no_args_is_help=True)


@produce.command()
def click(  # noqa: PLR0913, PLR0917 - the options of a command
    context: typer.Context,
    user: str,
    item: str,
    request_id: RequestId = None,
    position: Annotated[int | None, typer.Option(help="The slot it was chosen from, from 0.")] = None,
    event_id: EventId = None,
    timestamp_ms: AtMs = None,
) -> None:
    """USER chose ITEM."""
    fields = {"user_id": user, "item_id": item, "request_id": request_id, "position": position}
    _send(context, CLICKS, user, _record(Click, fields | _identity(event_id, timestamp_ms)))


@produce.command()
def impression(  # noqa: PLR0913, PLR0917 - the options of a command
    context: typer.Context,
    user: str,
    items: Annotated[list[str], typer.Argument(help="What came into view, from the first slot on.")],
    request_id: RequestId = None,
    policy: Annotated[str | None, typer.Option(help="The recommender that served it, if it was another.")] = None,
    event_id: EventId = None,
    timestamp_ms: AtMs = None,
) -> None:
    """USER saw ITEMS."""
    seen = [{"item_id": item, "position": position} for position, item in enumerate(items)]
    fields = {"user_id": user, "items": seen, "request_id": request_id, "policy": policy}
    _send(context, IMPRESSIONS, user, _record(Impression, fields | _identity(event_id, timestamp_ms)))


@produce.command()
def request(  # noqa: PLR0913, PLR0917 - the options of a command
    context: typer.Context,
    user: str,
    k: Annotated[int | None, typer.Option("-k", help="How many items; policy.slate_size if absent.")] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="Only these; may be given several times.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not these; may be given several times.")] = None,
    fresh_through_offset: Annotated[
        int | None, typer.Option(help="Wait for the click at this offset, as `produce click` printed it.")
    ] = None,
    event_id: EventId = None,
    timestamp_ms: AtMs = None,
) -> None:
    """USER opened a page: recommend now."""
    fields = {
        "user_id": user,
        "k": k,
        "candidates": candidate or None,
        "exclude": exclude or [],
        "fresh_through_offset": fresh_through_offset,
    }
    _send(context, REQUESTS, user, _record(Request, fields | _identity(event_id, timestamp_ms)))


@produce.command()
def item(
    context: typer.Context,
    item: str,
    title: Annotated[str | None, typer.Option(help="What a person reads.")] = None,
    category: Annotated[str | None, typer.Option(help="Its kind.")] = None,
    *,
    available: Annotated[bool, typer.Option(help="Whether it may be recommended.")] = True,
    withdraw: Annotated[bool, typer.Option(help="Sends the tombstone that takes it out.")] = False,
) -> None:
    """What the catalogue says of ITEM."""
    fields = {"item_id": item, "title": title, "category": category, "available": available}
    record = _record(Item, fields)
    _send(context, ITEMS, item, None if withdraw else record)


def _identity(event_id: str | None, timestamp_ms: int | None) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex if event_id is None else event_id,
        "timestamp_ms": time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms,
    }


def _record(kind: type[Record], fields: dict[str, Any]) -> Record:
    """The record, checked as a reader would check it."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__.lower()}: {error}") from error


def _send(context: typer.Context, topic: str, key: str, record: Record | None) -> None:
    kafka: KafkaSettings = context.obj.kafka
    require_topics(kafka)
    value = None if record is None else msgspec.json.encode(record)
    with clients.producer(kafka) as producer:
        sent = producer.send(kafka.topic(topic), key=key.encode(), value=value, headers=_headers(record))
        try:
            place = sent.get(timeout=ACKNOWLEDGED_SECONDS)
        except KafkaError as error:
            raise ValueError(f"Kafka did not take it: {error}; see that the broker is well") from error
    typer.echo(f"{place.topic}: partition {place.partition}, offset {place.offset}")


def _headers(record: Record | None) -> Headers:
    """CloudEvents attributes; a tombstone is no event."""
    if record is None:
        return []
    event_id = getattr(record, "event_id", None) or uuid.uuid4().hex
    return event_headers(record, event_id=event_id, source="produce", at_ms=time.time_ns() // 1_000_000)
