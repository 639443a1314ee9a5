"""CloudEvents 1.0 headers in Kafka's binary mode: the record's value stays plain JSON."""

from __future__ import annotations

from datetime import UTC, datetime

Headers = list[tuple[str, bytes]]


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
