"""The ledger of I2: per topic partition, every message that came in ended in exactly one way.

The counts are read from the users' states on `sequences`, where they are as exact as the states themselves, and from
the dead letters, each source position once. Messages come in at offsets; what the worker has not finished yet is the
difference, `waiting`. Offsets that hold no event, because a transactional producer's markers and what it took back
stand there, are counted as `markers`, as far back as the topic is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from stream.clients import consumer
from stream.dead_letters import source_position
from stream.sequences import Inherited, UserState, decode_state
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, IMPRESSIONS, RECOMMENDATIONS, SEQUENCES

INPUTS = (CLICKS, IMPRESSIONS, RECOMMENDATIONS)
GROUP = "stream"
"""The consumer group whose offsets say what is finished."""
ITEMS = "impression items"
"""What impressions count beside messages: each item seen ends in its own way."""


_CAME_IN = "came in"

Place = tuple[str, int]
"""A topic by its name without the prefix, and a partition."""
Column = tuple[str, str]
"""A topic, or `ITEMS`, and an outcome."""


class Account(NamedTuple):
    """One line of the ledger."""

    topic: str
    """Without the prefix, or `ITEMS`."""
    partition: int
    came_in: int
    outcomes: dict[str, int]
    """How the messages ended, by name."""

    @property
    def waiting(self) -> int:
        """Not folded in yet."""
        return self.came_in - sum(self.outcomes.values())


_Part = UserState | Inherited
"""Whose events are counted: the user's own, and those of users who were forgotten at an event of this one."""


def _seen_open(part: _Part) -> int:
    return sum(len(slate.seen) for slate in part.slates) if isinstance(part, UserState) else 0


_COUNTS: tuple[tuple[str, str, Callable[[_Part], int]], ...] = (
    (CLICKS, "applied", lambda part: part.clicks_applied),
    (CLICKS, "duplicate", lambda part: part.accounts.clicks_duplicate),
    (CLICKS, "late", lambda part: part.accounts.clicks_late),
    (IMPRESSIONS, "applied", lambda part: part.accounts.impressions),
    (RECOMMENDATIONS, "applied", lambda part: part.accounts.slates),
    (RECOMMENDATIONS, "duplicate", lambda part: part.accounts.slates_duplicate),
    (RECOMMENDATIONS, "late", lambda part: part.accounts.slates_late),
    (ITEMS, "clicked", lambda part: part.accounts.items_clicked),
    (ITEMS, "expired", lambda part: part.accounts.items_expired),
    (ITEMS, "duplicate", lambda part: part.accounts.items_duplicate),
    (ITEMS, "late", lambda part: part.accounts.items_late),
    (ITEMS, "open", _seen_open),
    (ITEMS, _CAME_IN, lambda part: part.accounts.items_seen),
)


def _counts_of(state: UserState) -> tuple[int, ...]:
    others = state.inherited or Inherited()
    return tuple(count(state) + count(others) for _, _, count in _COUNTS)


def read_accounts(kafka: KafkaSettings) -> list[Account]:
    """The ledger as it stands now; exact once the worker has finished what had come in.

    Reads `sequences` and the dead letters, and of an input topic what is finished where some offsets held no event.
    """
    with consumer(kafka, group_id=kafka.group(GROUP)) as client:
        dead = _dead_letters(client, kafka)
        totals = _totals(client, kafka)
        # Last, so that nothing counted above had not come in yet.
        came_in = {(name, partition): end for name in INPUTS for partition, end in _ends(client, kafka, name).items()}
        ledger = [
            _account(name, partition, totals.get(partition, Counter()), came_in, dead)
            for partition in sorted({partition for _, partition in came_in})
            for name in (*INPUTS, ITEMS)
        ]
        return [account if account.topic == ITEMS else _with_markers(account, client, kafka) for account in ledger]


def _with_markers(account: Account, client: KafkaConsumer, kafka: KafkaSettings) -> Account:
    """The account with the offsets that held no event, which are looked for only where finished ones are missing."""
    tp = TopicPartition(kafka.topic(account.topic), account.partition)
    finished = client.committed(tp) or 0
    missing = account.waiting > account.came_in - finished
    markers = _offsets_without_record(client, tp, finished) if missing else 0
    return account._replace(outcomes=account.outcomes | {"markers": markers})


def _offsets_without_record(client: KafkaConsumer, tp: TopicPartition, behind: int) -> int:
    """Up to an offset and as far back as the topic is kept: transaction markers and what was taken back."""
    client.assign([tp])
    client.seek_to_beginning(tp)
    first, read = int(client.position(tp)), 0
    while client.position(tp) < behind:
        for records in client.poll(timeout_ms=1_000).values():
            read += sum(record.offset < behind for record in records)
    return max(behind - first - read, 0)


def _account(
    name: str, partition: int, total: Counter[Column], came_in: dict[Place, int], dead: Counter[Place]
) -> Account:
    outcomes = {outcome: total[column, outcome] for column, outcome, _ in _COUNTS if column == name}
    if name == ITEMS:
        return Account(name, partition, outcomes.pop(_CAME_IN), outcomes)
    return Account(name, partition, came_in.get((name, partition), 0), outcomes | {"dead": dead[name, partition]})


def _totals(client: KafkaConsumer, kafka: KafkaSettings) -> dict[int, Counter[Column]]:
    """Per partition, summed over its users: what `sequences` says last of each."""
    rows: dict[int, dict[bytes, tuple[int, ...]]] = {}
    for record in _records(client, kafka.topic(SEQUENCES)):
        users = rows.setdefault(record.partition, {})
        if record.value is None:
            users.pop(record.key, None)
        else:
            users[record.key] = _counts_of(decode_state(record.value))
    return {partition: _sum(users.values()) for partition, users in rows.items()}


def _sum(rows: Iterable[tuple[int, ...]]) -> Counter[Column]:
    sums = [sum(column) for column in zip(*rows, strict=True)] or [0] * len(_COUNTS)
    return Counter({(name, outcome): count for (name, outcome, _), count in zip(_COUNTS, sums, strict=True)})


def _dead_letters(client: KafkaConsumer, kafka: KafkaSettings) -> Counter[Place]:
    """How many messages of each topic partition are among the dead letters, however often they were sent there."""
    positions = {
        source_position(record.headers)
        for name in INPUTS
        for record in _records(client, kafka.topic(name + DEAD_LETTER_SUFFIX))
    }
    names = {kafka.topic(name): name for name in INPUTS}
    return Counter((names[position.topic], position.partition) for position in positions if position.topic in names)


def _ends(client: KafkaConsumer, kafka: KafkaSettings, name: str) -> dict[int, int]:
    tps = _partitions(client, kafka.topic(name))
    return {tp.partition: end for tp, end in client.end_offsets(tps).items()}


def _records(client: KafkaConsumer, topic: str) -> Iterator[Any]:
    """Every record that stands on a topic at this moment."""
    tps = _partitions(client, topic)
    client.assign(tps)
    client.seek_to_beginning(*tps)
    ends = client.end_offsets(tps)
    while any(client.position(tp) < ends[tp] for tp in tps):
        for records in client.poll(timeout_ms=1_000).values():
            yield from records


def _partitions(client: KafkaConsumer, topic: str) -> list[TopicPartition]:
    partitions = client.partitions_for_topic(topic)
    if not partitions:
        raise ValueError(f"{topic} does not exist; make it with `sasrec-stream topics create`")
    return [TopicPartition(topic, partition) for partition in sorted(partitions)]
