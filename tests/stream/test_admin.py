from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions

from stream.admin import check_topics, create_topics, require_topics
from stream.clients import admin, consumer, producer
from stream.settings import KafkaSettings
from stream.topics import TOPICS

pytestmark = pytest.mark.broker

WaitUntil = Callable[[Callable[[], Any]], Any]


def other_installation(kafka: KafkaSettings, **changes: object) -> KafkaSettings:
    """Settings whose topics do not exist yet; the fixture deletes them with its own."""
    return kafka.model_copy(update={"topic_prefix": f"{kafka.topic_prefix}other.", **changes})


def alter(kafka: KafkaSettings, name: str, **configs: str) -> None:
    changes = {key.replace("_", "."): value for key, value in configs.items()}
    with admin(kafka) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, kafka.topic(name), configs=changes)])


def only_about(topic: str, problems: list[str]) -> list[str]:
    """The problems once they name no other topic: the broker tells of changes one topic at a time."""
    return problems if all(problem.startswith(topic) for problem in problems) else []


def test_creating_topics_makes_every_one_and_the_check_finds_nothing(kafka: KafkaSettings) -> None:
    fresh = other_installation(kafka)

    created = create_topics(fresh)

    assert created == sorted(fresh.topic(name) for name in TOPICS)
    assert check_topics(fresh) == []


def test_creating_topics_again_changes_nothing(kafka: KafkaSettings) -> None:
    assert create_topics(kafka) == []


def test_only_topics_keyed_by_user_and_their_dead_letters_have_many_partitions(kafka: KafkaSettings) -> None:
    with admin(kafka) as client:
        described = client.describe_topics([kafka.topic(name) for name in TOPICS])

    counts = {topic["name"].removeprefix(kafka.topic_prefix): len(topic["partitions"]) for topic in described}
    assert {name for name, count in counts.items() if count == 1} == {"models", "items", "items.dlq", "mapped.dlq"}
    assert {count for count in counts.values() if count != 1} == {kafka.partitions}


def test_missing_topics_are_named_with_the_command_that_makes_them(kafka: KafkaSettings) -> None:
    fresh = other_installation(kafka)

    (problem,) = check_topics(fresh)

    assert fresh.topic("clicks") in problem
    assert "sasrec-stream topics create" in problem


def test_a_topic_with_more_partitions_than_the_others_is_refused(kafka: KafkaSettings, wait_until: WaitUntil) -> None:
    with admin(kafka) as client:
        client.create_partitions({kafka.topic("impressions"): NewPartitions(total_count=3)})

    (problem,) = wait_until(lambda: check_topics(kafka))

    assert f"{kafka.topic('impressions')} has 3 partitions and needs 2" in problem
    assert "cannot shrink" in problem


def test_a_topic_with_fewer_partitions_than_the_others_is_refused_with_the_command_that_grows_it(
    kafka: KafkaSettings, wait_until: WaitUntil
) -> None:
    grown = [name for name, topic in TOPICS.items() if topic.partitioned_by_user and name != "requests"]
    with admin(kafka) as client:
        client.create_partitions({kafka.topic(name): NewPartitions(total_count=4) for name in grown})

    wanted = kafka.model_copy(update={"partitions": 4})
    (problem,) = wait_until(lambda: only_about(wanted.topic("requests"), check_topics(wanted)))

    assert f"--alter --topic {wanted.topic('requests')} --partitions 4" in problem


def test_equal_partitions_that_differ_from_the_setting_ask_for_the_setting(kafka: KafkaSettings) -> None:
    (problem,) = check_topics(kafka.model_copy(update={"partitions": 8}))

    assert "have 2 partitions; set kafka.partitions to that" in problem


@pytest.mark.parametrize(
    ("name", "wrong"), [("sequences", "delete"), ("items", "compact,delete"), ("clicks", "compact")]
)
def test_a_wrong_cleanup_policy_is_refused_with_the_command_that_mends_it(
    kafka: KafkaSettings, wait_until: WaitUntil, name: str, wrong: str
) -> None:
    alter(kafka, name, cleanup_policy=wrong)

    (problem,) = wait_until(lambda: check_topics(kafka))

    assert f"{kafka.topic(name)} has cleanup.policy={wrong} and needs {TOPICS[name].cleanup}" in problem
    assert f"--add-config cleanup.policy={TOPICS[name].cleanup}" in problem


def test_a_process_refuses_to_start_on_missing_topics(kafka: KafkaSettings) -> None:
    with pytest.raises(ValueError, match="sasrec-stream topics create"):
        require_topics(other_installation(kafka))


def test_topics_that_the_broker_refuses_are_named_with_its_reason(kafka: KafkaSettings) -> None:
    with pytest.raises(ValueError, match=r"clicks: .*replication factor"):
        create_topics(other_installation(kafka, replication_factor=3))


def test_an_items_topic_that_forgets_tombstones_is_refused(kafka: KafkaSettings, wait_until: WaitUntil) -> None:
    alter(kafka, "items", delete_retention_ms="86400000", cleanup_policy="compact")

    (problem,) = wait_until(lambda: check_topics(kafka))

    assert f"{kafka.topic('items')} forgets tombstones after 86400000 ms" in problem
    assert "--add-config delete.retention.ms=" in problem


@pytest.mark.parametrize(("kept_ms", "stays"), [(100 * 365 * 86_400_000, True), (0, False)])
def test_a_tombstone_outlives_compaction_only_as_the_topic_says(
    kafka: KafkaSettings, wait_until: WaitUntil, kept_ms: int, *, stays: bool
) -> None:
    at_once = {"log.cleaner.backoff.ms": "100"}
    with admin(kafka) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", configs=at_once)])
    alter(kafka, "items", segment_ms="100", min_cleanable_dirty_ratio="0", delete_retention_ms=str(kept_ms))

    def compacted() -> dict[bytes, bytes | None] | None:
        """What is left once what must go has gone; every message may close a segment, which is then compacted."""
        with producer(kafka) as client:
            client.send(kafka.topic("items"), key=b"another", value=b"{}").get(timeout=10)
        left = everything(kafka)
        return None if (b"gone", b"{}") in left or ((b"gone", None) in left and not stays) else dict(left)

    with producer(kafka) as client:
        client.send(kafka.topic("items"), key=b"gone", value=b"{}").get(timeout=10)
        client.send(kafka.topic("items"), key=b"gone", value=None).get(timeout=10)
    left = wait_until(compacted)

    assert (b"gone" in left) == stays


def everything(kafka: KafkaSettings) -> list[tuple[bytes, bytes | None]]:
    with consumer(kafka) as client:
        tp = TopicPartition(kafka.topic("items"), 0)
        client.assign([tp])
        client.seek_to_beginning(tp)
        end = client.end_offsets([tp])[tp]
        found: list[tuple[bytes, bytes | None]] = []
        while client.position(tp) < end:
            found += [(record.key, record.value) for records in client.poll(200).values() for record in records]
        return found
