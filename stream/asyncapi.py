"""An AsyncAPI 3 document of everything that applications write and read here, generated from topics and records.

https://www.asyncapi.com/docs/reference/specification/v3.0.0; seen from the recommender: it receives what applications
send, and sends what they read.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from stream import dead_letters
from stream.admin import partitions_of
from stream.cloud_events import KINDS, event_type
from stream.events import Record
from stream.schemas import PUBLIC_RECORDS, components_of
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, MODELS, RECOMMENDATIONS, TOPICS, Topic

VERSION = "3.0.0"
FILE = "asyncapi.json"
DISTRIBUTION = "sasrec-stream"

Node = dict[str, Any]

_RECEIVED = [name for name in PUBLIC_RECORDS if name != MODELS]
_SENT = [RECOMMENDATIONS, MODELS]
_LETTERS = [name for name in TOPICS if name.endswith(DEAD_LETTER_SUFFIX)]


def asyncapi_document(kafka: KafkaSettings) -> Node:
    """The document for an installation: its prefix, partitions and copies."""
    roots, schemas = components_of(PUBLIC_RECORDS.values(), ref_template="#/components/schemas/{name}")
    payloads = dict(zip(PUBLIC_RECORDS, roots, strict=True))
    return {
        "asyncapi": VERSION,
        "info": {
            "title": DISTRIBUTION,
            "version": metadata.version(DISTRIBUTION),
            "description": "A recommender that keeps learning while it serves: events in, recommendations out.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(TOPICS[name], kafka) for name in (*PUBLIC_RECORDS, *_LETTERS)},
        "operations": {
            **{f"receive-{name}": _operation("receive", name) for name in _RECEIVED},
            **{f"send-{name}": _operation("send", name) for name in (*_SENT, *_LETTERS)},
        },
        "components": {
            "schemas": schemas,
            "messages": {
                **{KINDS[record]: _message(name, record, payloads[name]) for name, record in PUBLIC_RECORDS.items()},
                "dead-letter": _dead_letter(),
            },
        },
    }


def asyncapi_text(kafka: KafkaSettings) -> str:
    """The document as it stands in a file."""
    return msgspec.json.format(msgspec.json.encode(asyncapi_document(kafka)), indent=2).decode() + "\n"


def write_asyncapi(folder: Path, kafka: KafkaSettings) -> Path:
    """Writes the document into a folder and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(asyncapi_text(kafka))
    return folder / FILE


def _channel(topic: Topic, kafka: KafkaSettings) -> Node:
    message = "dead-letter" if topic.name in _LETTERS else KINDS[PUBLIC_RECORDS[topic.name]]
    return {
        "address": kafka.topic(topic.name),
        "description": f"{topic.what}; keyed by {topic.key}; written by {topic.written_by}, read by {topic.read_by}",
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {
            "kafka": {
                "topic": kafka.topic(topic.name),
                "partitions": partitions_of(topic, kafka),
                "replicas": kafka.replication_factor,
                "topicConfiguration": {"cleanup.policy": [topic.cleanup]},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _operation(action: str, name: str) -> Node:
    return {"action": action, "channel": {"$ref": f"#/channels/{name}"}}


def _message(name: str, record: type[Record], payload: Node) -> Node:
    return {
        "name": KINDS[record],
        "title": record.__name__,
        "summary": TOPICS[name].what,
        "contentType": "application/json",
        "headers": _cloud_event(event_type(record)),
        "payload": payload,
        "bindings": {"kafka": {"key": {"type": "string", "description": TOPICS[name].key}, "bindingVersion": "0.5.0"}},
    }


def _cloud_event(kind: str) -> Node:
    """CloudEvents 1.0 in Kafka's binary mode; written by us, welcome from others, needed from nobody."""
    return {
        "type": "object",
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": {"type": "string"},
            "ce_type": {"const": kind},
            "ce_source": {"type": "string"},
            "ce_time": {"type": "string", "format": "date-time"},
            "content-type": {"const": "application/json"},
        },
    }


def _dead_letter() -> Node:
    """Headers as in KIP-1034, the value as it came."""
    texts = (dead_letters.EXCEPTION, dead_letters.MESSAGE, dead_letters.TOPIC)
    numbers = (dead_letters.PARTITION, dead_letters.OFFSET)
    return {
        "name": "dead-letter",
        "title": "Dead letter",
        "summary": "a message that could not be read, raw, with its own key and headers and the reason",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object",
            "required": [*texts, *numbers],
            "properties": {
                **{name: {"type": "string"} for name in texts},
                **{name: {"type": "string", "pattern": "^[0-9]+$"} for name in (*numbers, dead_letters.REPLAYS)},
            },
        },
    }
