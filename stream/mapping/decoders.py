"""Raw messages -> plain dicts and lists: JSON, CloudEvents, and what a schema registry describes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec

from stream.dead_letters import RawRecord, UnreadableError
from stream.mapping.registry import Registry
from stream.mapping.settings import SourceSettings

Decode = Callable[[RawRecord], Any]
"""Raises UnreadableError for what it cannot read, RegistryError where the registry does not answer."""

_STRUCTURED = b"application/cloudevents+json"
_BINARY = "ce_"


def decoder_of(source: SourceSettings, registry: Registry | None) -> Decode:
    """How the source's messages are read.

    Raises:
        ValueError: a registry is needed and none is named, or its formats are not installed.
    """
    if source.decoder == "json":
        return decode_json
    if source.decoder == "cloudevents":
        return decode_cloud_event
    if registry is None:
        raise ValueError(f"{source.topic}: the decoder `confluent` needs mapping.registry_url")
    try:
        from stream.mapping.confluent import Confluent  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(
            f"{source.topic}: the decoder `confluent` needs the extra: pip install 'sasrec-stream[schema-registry]'"
        ) from error
    return Confluent(registry).decode


def decode_json(record: RawRecord) -> Any:  # noqa: ANN401 - whatever stands in a message
    """JSON, of any shape."""
    return _json(record.value)


def decode_cloud_event(record: RawRecord) -> dict[str, Any]:
    """The attributes by their names and the payload under `data`, whichever mode the message is in.

    CloudEvents 1.0, Kafka protocol binding: structured is told by the content type, binary by headers `ce_...`.
    """
    headers = dict(record.headers)
    if headers.get("content-type", b"").startswith(_STRUCTURED):
        event = _json(record.value)
        if not isinstance(event, dict) or "specversion" not in event:
            raise UnreadableError("invalid", "no CloudEvent: a structured one is an object with specversion")
        if "data_base64" in event:
            event["data"] = _json(_from_base64(event.pop("data_base64")))
        return event
    attributes = {
        name.removeprefix(_BINARY): value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith(_BINARY)
    }
    if "specversion" not in attributes:
        raise UnreadableError(
            "invalid", "no CloudEvent: neither ce_ headers nor content-type application/cloudevents+json"
        )
    return attributes | {"data": _json(record.value)}


def _from_base64(text: Any) -> bytes:  # noqa: ANN401 - whatever stands there
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise UnreadableError("malformed", f"data_base64: {error}") from error


def _json(value: bytes | None) -> Any:  # noqa: ANN401 - whatever stands in a message
    if value is None:
        raise UnreadableError("null", "the value is null; only items have tombstones")
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError("malformed", f"not JSON: {error}") from error
