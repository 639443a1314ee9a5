"""Makes the topics, and says how to mend those that stand otherwise than the stream needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import NoError, TopicAlreadyExistsError, for_code

from stream.clients import admin
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, SEQUENCES, TOPICS, Cleanup, Topic

# Written by the stream worker in one batch per chunk, which the broker must take whole.
_WRITTEN_IN_BATCHES = (SEQUENCES, EXAMPLES)
# The broker adds its own header to what a client may send.
_BATCH_HEADER_BYTES = 4_096
# Only closed segments are compacted: with the usual gigabyte, a restart would read every old state of a user.
_COMPACTED_SEGMENT_BYTES = 64 << 20


# Compaction removes a tombstone after this time, and with it what it said; the broker's default is a day.
_FOR_EVER_MS = 100 * 365 * 86_400_000


class Layout(NamedTuple):
    """A topic as it stands on the broker."""

    partitions: int
    cleanup: str
    tombstones_ms: int
    """How long compaction keeps a tombstone."""


def create_topics(kafka: KafkaSettings) -> list[str]:
    """Makes the topics that are missing and leaves the others as they are; returns the names of those it made.

    Raises:
        ValueError: the broker refuses one, and why.
    """
    with admin(kafka) as client:
        standing = set(client.list_topics())
        missing = {kafka.topic(name): _wanted(topic, kafka) for name, topic in TOPICS.items()}
        missing = {name: wanted for name, wanted in missing.items() if name not in standing}
        return _create(client, missing) if missing else []


def check_topics(kafka: KafkaSettings) -> list[str]:
    """What is wrong with the topics, each in a sentence that says how to mend it."""
    with admin(kafka) as client:
        layouts = _layouts(client, [kafka.topic(name) for name in TOPICS])
    return [
        *_missing(layouts, kafka),
        *_wrong_partitions(layouts, kafka),
        *_wrong_cleanup(layouts, kafka),
        *_lost_tombstones(layouts, kafka),
    ]


def require_topics(kafka: KafkaSettings) -> None:
    """What every process does before it reads or writes anything.

    Raises:
        ValueError: the topics are not as they must be; every reason, each with its cure.
    """
    problems = check_topics(kafka)
    if problems:
        raise ValueError("; ".join(problems))


def partitions_of(topic: Topic, kafka: KafkaSettings) -> int:
    """kafka.partitions for what is keyed by user, one for the small tables, the source's for dead letters."""
    source = TOPICS.get(topic.name.removesuffix(DEAD_LETTER_SUFFIX), topic)
    return kafka.partitions if source.partitioned_by_user else 1


def _wanted(topic: Topic, kafka: KafkaSettings) -> dict[str, Any]:
    largest = kafka.max_batch_bytes if topic.name in _WRITTEN_IN_BATCHES else kafka.max_message_bytes
    return {
        "num_partitions": partitions_of(topic, kafka),
        "replication_factor": kafka.replication_factor,
        "configs": {
            "cleanup.policy": topic.cleanup,
            "max.message.bytes": str(largest + _BATCH_HEADER_BYTES),
            **_kept(topic.cleanup, kafka),
            **({"delete.retention.ms": str(_FOR_EVER_MS)} if topic.keeps_tombstones else {}),
        },
    }


def _kept(cleanup: Cleanup, kafka: KafkaSettings) -> dict[str, str]:
    if cleanup == "compact":
        return {"segment.bytes": str(_COMPACTED_SEGMENT_BYTES)}
    return {"retention.ms": str(kafka.retention_hours * 3_600_000)}


def _create(client: KafkaAdminClient, wanted: Mapping[str, dict[str, Any]]) -> list[str]:
    """A topic that another process makes in the same moment is as good as made, though not by us."""
    answers = client.create_topics(dict(wanted), raise_errors=False)["topics"]
    errors = {answer["name"]: for_code(answer["error_code"]) for answer in answers}
    refused = [
        f"{answer['name']}: {answer['error_message'] or errors[answer['name']].__name__}"
        for answer in answers
        if errors[answer["name"]] not in (NoError, TopicAlreadyExistsError)
    ]
    if refused:
        raise ValueError(f"the broker did not create {'; '.join(refused)}")
    client.wait_for_topics(list(wanted))
    return sorted(name for name, error in errors.items() if error is NoError)


def _layouts(client: KafkaAdminClient, names: Iterable[str]) -> dict[str, Layout]:
    """Of the topics among these that exist."""
    wanted = set(names)
    partitions = {
        topic["name"]: len(topic["partitions"]) for topic in client.describe_topics() if topic["name"] in wanted
    }
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, configs=["cleanup.policy", "delete.retention.ms"])
        for name in partitions
    ]
    configs = client.describe_configs(resources, config_filter="all")["topic"] if resources else {}
    return {
        name: Layout(
            count, configs[name]["cleanup.policy"]["value"], int(configs[name]["delete.retention.ms"]["value"])
        )
        for name, count in partitions.items()
    }


def _missing(layouts: Mapping[str, Layout], kafka: KafkaSettings) -> list[str]:
    missing = [kafka.topic(name) for name in TOPICS if kafka.topic(name) not in layouts]
    return [f"missing: {', '.join(missing)}; make them with `sasrec-stream topics create`"] if missing else []


def _wrong_partitions(layouts: Mapping[str, Layout], kafka: KafkaSettings) -> list[str]:
    """Users are joined across these topics partition by partition, so one number of them holds for all."""
    by_user = [kafka.topic(topic.name) for topic in TOPICS.values() if topic.partitioned_by_user]
    counts = {name: layouts[name].partitions for name in by_user if name in layouts}
    common = set(counts.values())
    if common <= {kafka.partitions}:
        return []
    if len(common) == 1:
        return [f"all topics keyed by user have {common.pop()} partitions; set kafka.partitions to that"]
    return [
        f"{name} has {count} partitions and needs {kafka.partitions} (kafka.partitions); {_cure(name, count, kafka)}"
        for name, count in counts.items()
        if count != kafka.partitions
    ]


def _cure(name: str, count: int, kafka: KafkaSettings) -> str:
    """A topic can grow, but not shrink; while it is empty, growing moves no user."""
    if count < kafka.partitions:
        return (
            f"while it is empty, grow it with `kafka-topics.sh --bootstrap-server {kafka.bootstrap_servers} --alter "
            f"--topic {name} --partitions {kafka.partitions}`; else copy it to a new one"
        )
    return "it cannot shrink: delete it and run `sasrec-stream topics create`, or raise kafka.partitions and the others"


def _wrong_cleanup(layouts: Mapping[str, Layout], kafka: KafkaSettings) -> list[str]:
    """A table cleaned by time forgets users; a log that is compacted loses all of a user's clicks but the last."""
    wanted = {kafka.topic(name): topic.cleanup for name, topic in TOPICS.items()}
    return [
        f"{name} has cleanup.policy={layout.cleanup} and needs {wanted[name]}; set it with `kafka-configs.sh "
        f"--bootstrap-server {kafka.bootstrap_servers} --alter --entity-type topics --entity-name {name} "
        f"--add-config cleanup.policy={wanted[name]}`"
        for name, layout in layouts.items()
        if layout.cleanup != wanted[name]
    ]


def _lost_tombstones(layouts: Mapping[str, Layout], kafka: KafkaSettings) -> list[str]:
    """Once its tombstone has gone, nothing says any more that an item was withdrawn: a worker would serve it again."""
    keeping = [kafka.topic(name) for name, topic in TOPICS.items() if topic.keeps_tombstones]
    return [
        f"{name} forgets tombstones after {layouts[name].tombstones_ms} ms, and a withdrawn item would come back; mend "
        f"it with `kafka-configs.sh --bootstrap-server {kafka.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {name} --add-config delete.retention.ms={_FOR_EVER_MS}`"
        for name in keeping
        if name in layouts and layouts[name].tombstones_ms < _FOR_EVER_MS
    ]
