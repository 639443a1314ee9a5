"""CloudEvents 1.0 headers in Kafka's binary mode: the record's value stays plain JSON."""

from __future__ import annotations

from datetime import UTC, datetime

from stream.events import Click, Impression, Item, ModelAnnouncement, Recommendation, Record, Request

Headers = list[tuple[str, bytes]]

KINDS: dict[type[Record], str] = {
    Click: "click",
    Impression: "impression",
    Request: "request",
    Recommendation: "recommendation",
    Item: "item",
    ModelAnnouncement: "model",
}


def event_type(record: type[Record]) -> str:
    """The `ce_type` of a record; its last part is the version of the record, docs/schemas/README.md."""
    return f"sasrec-stream.{KINDS[record]}.v1"


def event_headers(record: Record, *, event_id: str, source: str, at_ms: int) -> Headers:
    """What the binding demands of every event; `source` says who wrote it, and with it `event_id` names it for ever."""
    return cloud_event_headers(event_id=event_id, kind=KINDS[type(record)], source=source, at_ms=at_ms)


def cloud_event_headers(*, event_id: str, kind: str, source: str, at_ms: int) -> Headers:
    """What the binding demands of every event; `kind` becomes `sasrec-stream.<kind>.v1`, `source` who wrote it."""
    at = datetime.fromtimestamp(at_ms / 1_000, tz=UTC).isoformat(timespec="milliseconds")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", f"sasrec-stream.{kind}.v1".encode()),
        ("ce_source", f"/sasrec-stream/{source}".encode()),
        ("ce_time", at.encode()),
        ("content-type", b"application/json"),
    ]
