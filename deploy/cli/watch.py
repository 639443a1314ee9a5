"""`sasrec-stream watch USER`: a user's recommendations as they are made, by title."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
import typer
from kafka import KafkaConsumer, TopicPartition

from deploy.observe.reading import partition_of, partitions_of
from deploy.observe.titles import read_titles
from stream import clients
from stream.admin import require_topics
from stream.events import Recommendation, RecommendedItem
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS

_POLL_MS = 500


def watch(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="Whose recommendations.")],
    *,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Also those that Kafka still keeps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The records as they are, one a line.")] = False,
) -> None:
    """Follow a user's recommendations until Ctrl-C."""
    kafka: KafkaSettings = context.obj.kafka
    require_topics(kafka)
    titles = {} if as_json else read_titles(kafka)
    with contextlib.closing(clients.consumer(kafka)) as consumer, contextlib.suppress(KeyboardInterrupt):
        begin(consumer, kafka, user=user, at="beginning" if from_beginning else "end")
        for value in values_of(consumer, user):
            typer.echo(value.decode() if as_json else _readable(value, titles))


def begin(consumer: KafkaConsumer, kafka: KafkaSettings, *, user: str, at: Literal["beginning", "end"]) -> None:
    """Puts the consumer on the one partition that holds the user, at its beginning or at its end."""
    partitions = partitions_of(consumer, kafka.topic(RECOMMENDATIONS))
    partition: TopicPartition = partitions[partition_of(user, partitions=len(partitions))]
    consumer.assign([partition])
    if at == "beginning":
        consumer.seek_to_beginning(partition)
    else:
        consumer.seek(partition, consumer.end_offsets([partition])[partition])


def values_of(consumer: KafkaConsumer, user: str) -> Iterator[bytes]:
    """The user's messages as they come; never ends by itself."""
    key = user.encode()
    while True:
        for records in consumer.poll(_POLL_MS).values():
            yield from (record.value for record in records if record.key == key and record.value is not None)


def _readable(value: bytes, titles: Mapping[str, str]) -> str:
    try:
        return readable(msgspec.json.decode(value, type=Recommendation), titles)
    except msgspec.DecodeError as error:
        return f"(a message that is no recommendation: {error})"


def readable(slate: Recommendation, titles: Mapping[str, str]) -> str:
    """A headline with when, by whom and why, then one line per item."""
    at = datetime.datetime.fromtimestamp(slate.generated_at_ms / 1_000, datetime.UTC).strftime("%H:%M:%S")
    because = "" if slate.cause is None else f", after {slate.cause.topic} {slate.cause.partition}/{slate.cause.offset}"
    headline = f"{at} UTC  {slate.policy}, model {slate.model_version or 'none yet'}{because}"
    return "\n".join([headline, *(_line(item, titles) for item in slate.items)])


def _line(item: RecommendedItem, titles: Mapping[str, str]) -> str:
    title = titles.get(item.item_id, item.item_id)
    score = "" if item.score is None else f"{item.score:.2f}"
    chance = "" if item.propensity is None else f"{item.propensity:.2%}"
    return f"  {item.position + 1:>3}  {title:<50.50}  {item.source:<8} score {score:>7}  chance {chance:>7}"
