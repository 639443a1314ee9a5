"""Follows what applications see: clicks and recommendations as they come, titles as they stand.

It only looks. Where the topics run faster than it reads, it leaves messages out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TypeVar

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from deploy.observe.snapshot import Latency, Recommended, UserView
from stream.clients import consumer
from stream.events import Click, Item, Recommendation, Record
from stream.settings import KafkaSettings
from stream.topics import CLICKS, ITEMS, RECOMMENDATIONS

READ_AT_ONCE = 2_000
TITLES_KEPT = 200_000
USERS_KEPT = 1_000
CLICKS_SHOWN = 8
LATENCIES_KEPT = 10_000

RecordT = TypeVar("RecordT", bound=Record)


class Seen:
    """What has been seen so far; fed message by message."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.newest: Recommendation | None = None
        """The newest recommendation that a model made."""
        self._titles: dict[str, str] = {}
        self._clicks: OrderedDict[str, deque[str]] = OrderedDict()
        self._slates: OrderedDict[str, Recommendation] = OrderedDict()
        self._latencies_ms: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._shown: str | None = None

    def item(self, item: Item) -> None:
        """Remembers a title."""
        if item.title and (item.item_id in self._titles or len(self._titles) < TITLES_KEPT):
            self._titles[item.item_id] = item.title

    def click(self, click: Click) -> None:
        """Remembers what a user clicked last."""
        clicks = self._clicks.setdefault(click.user_id, deque(maxlen=CLICKS_SHOWN))
        clicks.append(click.item_id)
        _keep_newest(self._clicks, click.user_id)

    def recommendation(self, slate: Recommendation, *, published_ms: int) -> None:
        """Remembers a user's slate; `published_ms` is Kafka's timestamp of it."""
        self._slates[slate.user_id] = slate
        _keep_newest(self._slates, slate.user_id)
        if slate.cause is not None and slate.cause.topic.endswith(CLICKS):
            self._latencies_ms.append(published_ms - slate.cause.arrived_at_ms)
        if slate.model_version is not None:
            self.versions.add(slate.model_version)
            self.newest = slate

    def latency(self) -> Latency | None:
        """From click to recommendation, or None before the first."""
        if not self._latencies_ms:
            return None
        p50_ms, p99_ms = np.percentile(np.array(self._latencies_ms), (50, 99))
        return Latency(p50_ms=float(p50_ms), p99_ms=float(p99_ms))

    def user(self) -> UserView | None:
        """One user with clicks and a slate; the same one from look to look, so that a person can follow."""
        if self._shown not in self._clicks or self._shown not in self._slates:
            self._shown = next((user for user in reversed(self._slates) if user in self._clicks), None)
        if self._shown is None:
            return None
        slate = self._slates[self._shown]
        return UserView(
            user_id=self._shown,
            clicks=tuple(self._title(item_id) for item_id in self._clicks[self._shown]),
            slate=tuple(Recommended(title=self._title(item.item_id), source=item.source) for item in slate.items),
            model_version=slate.model_version,
        )

    def _title(self, item_id: str) -> str:
        return self._titles.get(item_id, item_id)


class Tail:
    """Feeds `seen` from Kafka."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.seen = Seen()
        self._kafka = kafka
        self._consumer: KafkaConsumer = consumer(kafka, max_poll_records=READ_AT_ONCE)
        live = self._partitions(CLICKS) + self._partitions(RECOMMENDATIONS)
        items = self._partitions(ITEMS)
        self._consumer.assign(live + items)
        self._consumer.seek_to_end(*live)
        self._consumer.seek_to_beginning(*items)

    def poll(self) -> None:
        """Reads what has come, and leaves out what is too much."""
        for partition, messages in self._consumer.poll(timeout_ms=0).items():
            name = partition.topic.removeprefix(self._kafka.topic_prefix)
            for message in messages:
                self._see(name, message)
            if name != ITEMS and len(messages) >= READ_AT_ONCE:
                self._consumer.seek_to_end(partition)

    def close(self) -> None:
        """Closes the connections."""
        self._consumer.close()

    def _partitions(self, name: str) -> list[TopicPartition]:
        topic = self._kafka.topic(name)
        return [TopicPartition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())]

    def _see(self, name: str, message: ConsumerRecord) -> None:
        if name == CLICKS and (click := _decoded(message.value, Click)):
            self.seen.click(click)
        elif name == ITEMS and (item := _decoded(message.value, Item)):
            self.seen.item(item)
        elif name == RECOMMENDATIONS and (slate := _decoded(message.value, Recommendation)):
            self.seen.recommendation(slate, published_ms=message.timestamp)


def _decoded(raw: bytes | None, record: type[RecordT]) -> RecordT | None:
    """The record, or None for a tombstone and for what cannot be read: that is told by whoever has to read it."""
    try:
        return msgspec.json.decode(raw, type=record) if raw is not None else None
    except msgspec.DecodeError:
        return None


def _keep_newest(users: OrderedDict[str, deque[str]] | OrderedDict[str, Recommendation], user_id: str) -> None:
    users.move_to_end(user_id)
    if len(users) > USERS_KEPT:
        users.popitem(last=False)
