"""kafka-python producers and consumers, set up once: acknowledged by all, idempotent, committed records only."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaTimeoutError

from stream.codecs import KAFKA_PYTHON, bound_decompression
from stream.settings import KafkaSettings

CONSUMER_BUFFER_BYTES = 4 << 20
ADMIN_PATIENCE_MS = 10_000


def producer(kafka: KafkaSettings, **overrides: Any) -> KafkaProducer:  # noqa: ANN401 - passed on as they are
    """A producer whose retries neither lose, double nor reorder; keys are partitioned by murmur2 as everywhere here."""
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 2,
        "batch_size": 1 << 17,
        "max_request_size": kafka.max_message_bytes,
    }
    return KafkaProducer(**(settings | overrides))


def consumer(kafka: KafkaSettings, **overrides: Any) -> KafkaConsumer:  # noqa: ANN401 - passed on as they are
    """A consumer of committed records that never commits by itself: whoever reads decides what is done."""
    bound_decompression(KAFKA_PYTHON)
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": CONSUMER_BUFFER_BYTES,
        "max_poll_records": 10_000,
    }
    return KafkaConsumer(**(settings | overrides))


def admin(kafka: KafkaSettings) -> KafkaAdminClient:
    """The client that creates and describes topics.

    Raises:
        ValueError: no Kafka answers there; ten seconds are enough for one that is starting.
    """
    try:
        return KafkaAdminClient(
            bootstrap_servers=kafka.bootstrap_servers.split(","), bootstrap_timeout_ms=ADMIN_PATIENCE_MS
        )
    except KafkaTimeoutError as error:
        raise ValueError(
            f"no Kafka answers at {kafka.bootstrap_servers}; start one with `sasrec-stream kafka start`, or name yours "
            "with --bootstrap-servers"
        ) from error
