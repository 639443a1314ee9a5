"""Prints how the last messages of a topic are read, for `sasrec-stream topics sample`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import typer
from kafka import TopicPartition
from rich.console import Console
from rich.table import Table

from deploy.cli.texts import cell, printable
from deploy.settings import Settings
from stream.clients import consumer
from stream.mapping.reading import Mapper
from stream.mapping.rules import as_text
from stream.mapping.sample import Sample, own_sample, samples
from stream.schemas import PUBLIC_RECORDS
from stream.settings import KafkaSettings

COLUMNS = 120
"""A table is no narrower where the output is no terminal."""
SHOWN_CHARACTERS = 80


def show_samples(settings: Settings, topic: str, *, messages: int) -> None:
    """Prints every event of the last messages, and how many of them fit.

    Raises:
        ValueError: nothing says how the topic is read, or there is no such topic.
    """
    kafka = settings.kafka
    own = topic.removeprefix(kafka.topic_prefix)
    if own in PUBLIC_RECORDS:
        found = ((record, [own_sample(own, record)]) for record in last_messages(kafka, kafka.topic(own), messages))
    else:
        mapper = Mapper(settings.mapping)
        if topic not in mapper.topics:
            raise ValueError(f"no [[mapping.sources]] reads {topic}; docs/mapping.md says how to describe it")
        found = ((record, list(samples(mapper, record))) for record in last_messages(kafka, topic, messages))
    _show(found, Console(width=max(Console().width, COLUMNS)))


def last_messages(kafka: KafkaSettings, topic: str, count: int) -> list[Any]:
    """The newest committed messages of all partitions together, oldest first.

    Raises:
        ValueError: there is no such topic.
    """
    with consumer(kafka) as client:
        partitions = client.partitions_for_topic(topic)
        if not partitions:
            raise ValueError(f"{topic} does not exist on {kafka.bootstrap_servers}")
        tps = [TopicPartition(topic, partition) for partition in sorted(partitions)]
        client.assign(tps)
        begins, ends = client.beginning_offsets(tps), client.end_offsets(tps)
        for tp in tps:
            client.seek(tp, max(begins[tp], ends[tp] - count))
        records: list[Any] = []
        while any(client.position(tp) < ends[tp] for tp in tps):
            records += [record for fetched in client.poll(timeout_ms=1_000).values() for record in fetched]
    return sorted(records, key=lambda record: (record.timestamp, record.partition, record.offset))[-count:]


def _show(found: Iterable[tuple[Any, list[Sample]]], console: Console) -> None:
    verdicts: Counter[str] = Counter()
    for record, read in found:
        console.rule(f"partition {record.partition}, offset {record.offset}, key {_short(record.key)}", align="left")
        for sample in read:
            verdicts[
                "fits" if sample.fits else "passed over" if "passed over" in sample.verdict else "does not fit"
            ] += 1
            _show_sample(sample, console)
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "no messages")


def _show_sample(sample: Sample, console: Console) -> None:
    place = "" if sample.ordinal is None else f" (event {sample.ordinal})"
    console.print(f"{sample.record}{place}: {printable(sample.verdict)}", markup=False)
    if sample.lines:
        table = Table("our field", "looked for at", "found", "becomes")
        for line in sample.lines:
            table.add_row(line.field, cell(line.path), _short(line.value), _short(line.becomes))
        console.print(table)


def _short(value: Any) -> str:  # noqa: ANN401 - whatever stands in a message
    """One line of it."""
    text = repr(as_text(value)) if value is not None else ""
    return cell(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")
