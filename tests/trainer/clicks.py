"""Examples for the trainer's tests, as the stream worker makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from kafka import KafkaProducer

from stream.clients import producer
from stream.examples import ClickExample, Example, ExampleId, Served, ShownItem, encode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES

CONTEXT = 8
NOON_MS = 1_700_000_000_000


def clicks(
    count: int, *, users: int = 20, items: int = 30, partitions: int = 1, seed: int = 1, first_offset: int = 0
) -> list[ClickExample]:
    """Users who go through the items in order, each from a place of their own: what comes next can be learnt."""
    rng = np.random.default_rng(seed)
    at = rng.integers(items, size=users)
    histories: list[tuple[str, ...]] = [()] * users
    offsets = [first_offset] * partitions
    made = []
    for order in range(count):
        user = int(rng.integers(users))
        partition, item_id = user % partitions, f"item-{at[user] % items}"
        identity = ExampleId("clicks", partition, offsets[partition], 0)
        made.append(click(identity, f"user-{user}", histories[user], item_id, at_ms=NOON_MS + order))
        histories[user] = (*histories[user], item_id)[-CONTEXT:]
        at[user] += 1
        offsets[partition] += 1
    return made


def click(
    identity: ExampleId,
    user_id: str,
    context: Sequence[str],
    item_id: str,
    *,
    at_ms: int = NOON_MS,
    served: Served | None = None,
) -> ClickExample:
    return ClickExample(
        id=identity,
        user_id=user_id,
        context=tuple(context),
        item_id=item_id,
        timestamp_ms=at_ms,
        arrived_at_ms=at_ms,
        served=served,
    )


def in_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))


def send(kafka: KafkaSettings, examples: Sequence[Example]) -> None:
    """To the partition of the event that caused each, acknowledged."""
    with producer(kafka) as sender:
        send_with(sender, kafka, examples)


def send_with(sender: KafkaProducer, kafka: KafkaSettings, examples: Sequence[Example]) -> None:
    for example in examples:
        sender.send(
            kafka.topic(EXAMPLES),
            key=example.user_id.encode(),
            value=encode_example(example),
            partition=example.id.partition,
        )
    sender.flush()


def shown(item_id: str = "a", **more: object) -> ShownItem:
    """A slot of a slate: first place, p = 0.5, exploited, neither seen nor clicked, unless it is said."""
    how = {
        "position": 0,
        "propensity": 0.5,
        "propensity_kind": "exact",
        "source": "exploit",
        "seen": None,
        "clicked": False,
    }
    return ShownItem(item_id=item_id, **(how | more))  # type: ignore[arg-type]
