"""How much is on the topics, and how far each consumer group is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec

from deploy.local.watchdog import Position, Progress
from stream.settings import KafkaSettings
from stream.topics import CLICKS, EXAMPLES, IMPRESSIONS, RECOMMENDATIONS, REQUESTS, SEQUENCES

TIMEOUT_MS = 3_000

READS = {
    "stream": (CLICKS, IMPRESSIONS, RECOMMENDATIONS),
    "trainer": (EXAMPLES,),
    "scoring": (SEQUENCES, REQUESTS),
}
"""What each consumer group commits; the kinds of process are named like their groups."""


class Offsets:
    """Asks the broker; every question raises KafkaError while it is away."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._client = KafkaAdminClient(
            bootstrap_servers=kafka.bootstrap_servers.split(","), request_timeout_ms=TIMEOUT_MS
        )

    def ends(self, names: Iterable[str]) -> dict[Position, int]:
        """The end of every partition of these topics (by their names without the prefix)."""
        partitions = self._partitions(names)
        answers = self._client.list_partition_offsets(
            dict.fromkeys(partitions, OffsetSpec.LATEST), timeout_ms=TIMEOUT_MS
        )
        return {self._position(partition): answer.offset for partition, answer in answers.items()}

    def totals(self, names: Iterable[str]) -> dict[str, int]:
        """Per topic, how many messages were ever written to it."""
        totals = dict.fromkeys(names, 0)
        for (name, _), end in self.ends(totals).items():
            totals[name] += end
        return totals

    def progress(self) -> dict[str, dict[Position, Progress]]:
        """Per group, what is committed and what there is."""
        ends = self.ends({name for names in READS.values() for name in names})
        groups = self._client.list_group_offsets([self._kafka.group(kind) for kind in READS])
        return {
            kind: _progress(
                {position: end for position, end in ends.items() if position[0] in names},
                {self._position(at): found.offset for at, found in groups.get(self._kafka.group(kind), {}).items()},
            )
            for kind, names in READS.items()
        }

    def groups_are_stable(self) -> bool:
        """Whether every group that divides its partitions among members has done so; the trainer takes them all."""
        groups = self._client.describe_groups([self._kafka.group(kind) for kind in READS if kind != "trainer"])
        return all(group["group_state"] == "Stable" for group in groups.values())

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _partitions(self, names: Iterable[str]) -> list[TopicPartition]:
        described: list[dict[str, Any]] = self._client.describe_topics([self._kafka.topic(name) for name in names])
        return [TopicPartition(one["name"], part["partition_index"]) for one in described for part in one["partitions"]]

    def _position(self, partition: TopicPartition) -> Position:
        return partition.topic.removeprefix(self._kafka.topic_prefix), partition.partition


def lags(progress: Mapping[str, Mapping[Position, Progress]]) -> dict[str, int]:
    """Messages that are not done, per group."""
    return {kind: sum(one.lag for one in partitions.values()) for kind, partitions in progress.items()}


def _progress(ends: dict[Position, int], committed: dict[Position, int]) -> dict[Position, Progress]:
    """A partition of which nothing was ever committed is read from its beginning."""
    return {position: Progress(max(0, committed.get(position, 0)), end) for position, end in ends.items()}
