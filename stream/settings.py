"""Settings of the stream: the broker, the topics, the sequences and the join."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the settings: immutable, unknown keys refused, a docstring with its unit under every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class KafkaSettings(Section):
    """Which Kafka, and how its topics are laid out."""

    bootstrap_servers: Annotated[str, Field(min_length=1)] = "127.0.0.1:9092"
    """Comma-separated host:port list. `sasrec-stream up` puts its own broker's address here unless a settings
    file, the environment or `--bootstrap-servers` names one.
    """
    topic_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,100}$")] = "recs."
    """Before every topic name, consumer group and Faust app id, so that several installations share one Kafka."""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    """Partitions of every topic keyed by user; only used when `topics create` makes them."""
    replication_factor: Annotated[int, Field(ge=1, le=16)] = 1
    """Copies of every partition; 3 on a real cluster."""
    retention_hours: Annotated[int, Field(ge=1)] = 168
    """How long topics that are not compacted keep messages, in hours."""
    max_message_bytes: Annotated[int, Field(ge=1_024)] = 1_000_000
    """Largest message read or written, in bytes."""
    max_batch_bytes: Annotated[int, Field(ge=1_024, le=64_000_000)] = 16_000_000
    """Largest batch that the stream worker appends to `sequences` or `examples` at once, in bytes; only used when
    `topics create` makes them and by the worker, which cuts its batches at it.
    """

    def topic(self, name: str) -> str:
        """The full name on the broker."""
        return self.topic_prefix + name

    def group(self, name: str) -> str:
        """The consumer group of a kind of process."""
        return self.topic_prefix + name


class StreamSettings(Section):
    """The stream worker: per-user sequences and the join of clicks with what was served."""

    max_sequence_length: Annotated[int, Field(ge=2, le=10_000)] = 100
    """Interactions kept per user; the oldest falls off."""
    context_length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Interactions before the click that an example carries; no more than the model's `max_length` are used."""
    attribution_window_seconds: Annotated[int, Field(ge=1)] = 1_800
    """How long after a slate was served a click still belongs to it, in seconds of event time."""
    max_open_slates: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Slates per user whose window is open; the oldest is closed early when another comes."""
    remembered_slates: Annotated[int, Field(ge=0, le=1_000)] = 2
    """Closed slates per user that a late click or impression still corrects."""
    max_parked_clicks: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Clicks per user that wait for the slate they name; the oldest goes out without it when another comes."""
    max_state_bytes: Annotated[int, Field(ge=1_024, le=16_000_000)] = 65_536
    """Bytes kept per user, in `sequences` and in the store. Beyond it the oldest goes first: remembered slates, open
    ones, clicks that wait for their slate, then items of the sequence.
    """
    lateness_seconds: Annotated[int, Field(ge=0)] = 86_400
    """A click older than the user's newest by more than this, in seconds of event time, is counted as late and
    changes nothing.
    """
    max_future_seconds: Annotated[int, Field(ge=0)] = 300
    """An event dated further ahead of Kafka's own timestamp of it goes to the dead letters, in seconds. As long after
    its end, in event time of the partition, the window of a user who does nothing more is closed.
    """
    inactive_days: Annotated[int, Field(ge=1, le=36_500)] = 1_095
    """A user without an event for so many days of the partition's event time is forgotten, by a tombstone on
    `sequences`.
    """
    chunk_records: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Most records of one partition that are folded and committed together."""
    stall_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """A worker that finishes nothing of a partition for so long though records wait ends itself, to be started again,
    in seconds. Half as long, records wait for older ones of another topic that Kafka does not bring.
    """
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    """uvloop is faster; asyncio where it does not exist."""
