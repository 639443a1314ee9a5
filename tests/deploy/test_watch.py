from __future__ import annotations

import contextlib
import itertools

import msgspec
import pytest

from deploy.cli.watch import begin, readable, values_of
from deploy.observe.reading import partition_of
from stream import clients
from stream.events import Cause, Recommendation, RecommendedItem
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS


def slate(user_id: str, request_id: str) -> Recommendation:
    best = RecommendedItem(item_id="70", position=0, score=1.5, propensity=0.25, propensity_kind="exact")
    explored = RecommendedItem(item_id="71", position=1, source="explore")
    return Recommendation(
        request_id=request_id,
        user_id=user_id,
        policy="softmax",
        generated_at_ms=1_700_000_000_000,
        items=(best, explored),
        model_version="a/3",
        cause=Cause(topic="clicks", partition=1, offset=5, arrived_at_ms=1_700_000_000_000),
    )


def publish(kafka: KafkaSettings, *slates: Recommendation) -> None:
    with clients.producer(kafka) as producer:
        for one in slates:
            producer.send(kafka.topic(RECOMMENDATIONS), key=one.user_id.encode(), value=msgspec.json.encode(one))


@pytest.mark.broker
def test_only_the_users_own_slates_are_seen_and_the_older_ones_on_demand(kafka: KafkaSettings) -> None:
    users = [f"user {number}" for number in range(10)]
    publish(kafka, *(slate(user, "old") for user in users))

    with contextlib.closing(clients.consumer(kafka)) as late, contextlib.closing(clients.consumer(kafka)) as early:
        begin(late, kafka, user="user 4", at="end")
        begin(early, kafka, user="user 4", at="beginning")
        publish(kafka, *(slate(user, "new") for user in users))
        new = next(values_of(late, "user 4"))
        both = list(itertools.islice(values_of(early, "user 4"), 2))

    assert msgspec.json.decode(new, type=Recommendation) == slate("user 4", "new")
    assert [msgspec.json.decode(value)["request_id"] for value in both] == ["old", "new"]


@pytest.mark.broker
def test_a_user_is_looked_for_where_the_clients_put_them(kafka: KafkaSettings) -> None:
    with clients.producer(kafka) as producer:
        placed = {
            user: producer.send(kafka.topic(RECOMMENDATIONS), key=user.encode(), value=b"{}").get().partition
            for user in ("anna", "bo", "清", "42", "x" * 99)
        }

    assert {user: partition_of(user, partitions=kafka.partitions) for user in placed} == placed


def test_a_slate_is_read_by_title_with_why_and_with_which_chance() -> None:
    headline, first, second = readable(slate("anna", "r"), {"70": "Seventy"}).splitlines()

    assert headline == "22:13:20 UTC  softmax, model a/3, after clicks 1/5"
    assert first.split() == ["1", "Seventy", "exploit", "score", "1.50", "chance", "25.00%"]
    assert second.split() == ["2", "71", "explore", "score", "chance"]
