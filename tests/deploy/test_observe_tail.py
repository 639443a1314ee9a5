from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from deploy.observe.snapshot import Latency, Recommended
from deploy.observe.tail import CLICKS_SHOWN, USERS_KEPT, Seen, Tail
from stream.clients import producer
from stream.events import Cause, Click, Item, Recommendation, RecommendedItem
from stream.settings import KafkaSettings
from stream.topics import CLICKS, ITEMS, RECOMMENDATIONS

NOW_MS = 1_760_000_000_000
Wait = Callable[[Callable[[], Any]], Any]


def click(user_id: str, item_id: str) -> Click:
    return Click(event_id=f"{user_id}-{item_id}", user_id=user_id, item_id=item_id, timestamp_ms=NOW_MS)


def slate(user_id: str, *item_ids: str, version: str | None = "a/1", cause: str = "recs.clicks") -> Recommendation:
    return Recommendation(
        request_id=f"{user_id}-{version}",
        user_id=user_id,
        policy="test",
        generated_at_ms=NOW_MS,
        items=tuple(RecommendedItem(item_id=item_id, position=slot) for slot, item_id in enumerate(item_ids)),
        model_version=version,
        trained_through_arrival_ms=NOW_MS - 3_000,
        cause=Cause(topic=cause, partition=0, offset=0, arrived_at_ms=NOW_MS),
    )


def polled(tail: Tail) -> Seen:
    tail.poll()
    return tail.seen


def test_a_user_is_shown_by_title_and_where_there_is_none_by_id() -> None:
    seen = Seen()
    seen.item(Item(item_id="i1", title="Redshift, part 1"))
    seen.click(click("user-1", "i1"))
    seen.click(click("user-1", "i2"))

    seen.recommendation(slate("user-1", "i1", "i3"), published_ms=NOW_MS)

    user = seen.user()
    assert user is not None
    assert (user.user_id, user.model_version) == ("user-1", "a/1")
    assert user.clicks == ("Redshift, part 1", "i2")
    assert user.slate == (
        Recommended(title="Redshift, part 1", source="exploit"),
        Recommended(title="i3", source="exploit"),
    )


def test_nobody_is_shown_before_there_are_clicks_and_a_slate_of_one_user() -> None:
    seen = Seen()
    seen.click(click("user-1", "i1"))
    seen.recommendation(slate("user-2", "i1"), published_ms=NOW_MS)

    assert seen.user() is None


def test_the_same_user_is_shown_from_look_to_look() -> None:
    seen = Seen()
    for number in range(3):
        seen.click(click(f"user-{number}", "i1"))
        seen.recommendation(slate(f"user-{number}", "i1"), published_ms=NOW_MS)
        shown = seen.user()

        assert shown is not None
        assert shown.user_id == "user-0"


def test_the_latency_is_from_the_click_in_kafka_to_the_slate_in_kafka() -> None:
    seen = Seen()
    for published_ms in range(101):
        seen.recommendation(slate("user-1", "i1"), published_ms=NOW_MS + published_ms)
    seen.recommendation(slate("user-1", "i1", cause="recs.requests"), published_ms=NOW_MS + 9_999)

    assert seen.latency() == Latency(p50_ms=50.0, p99_ms=99.0)


def test_slates_without_a_model_are_no_version_and_age_nothing() -> None:
    seen = Seen()
    seen.recommendation(slate("user-1", "i1", version="a/1"), published_ms=NOW_MS)
    seen.recommendation(slate("user-1", "i1", version=None), published_ms=NOW_MS)

    assert seen.versions == {"a/1"}
    assert seen.newest is not None
    assert seen.newest.model_version == "a/1"


def test_however_many_users_there_are_only_the_newest_are_remembered() -> None:
    seen = Seen()
    for number in range(USERS_KEPT + 5):
        for item in range(CLICKS_SHOWN + 3):
            seen.click(click(f"user-{number}", f"i{item}"))

    assert len(seen._clicks) == USERS_KEPT
    assert {len(clicks) for clicks in seen._clicks.values()} == {CLICKS_SHOWN}


@pytest.mark.broker
def test_the_tail_sees_titles_from_before_and_events_from_now_on(kafka: KafkaSettings, wait_until: Wait) -> None:
    with producer(kafka) as sent:

        def send(topic: str, key: str, value: bytes | None) -> None:
            sent.send(kafka.topic(topic), key=key.encode(), value=value).get(30)

        send(ITEMS, "i1", msgspec.json.encode(Item(item_id="i1", title="Redshift, part 1")))
        send(CLICKS, "user-0", msgspec.json.encode(click("user-0", "i1")))
        tail = Tail(kafka)
        tail.poll()
        send(ITEMS, "i9", None)
        send(CLICKS, "user-1", b"not JSON")
        send(CLICKS, "user-1", msgspec.json.encode(click("user-1", "i1")))
        send(RECOMMENDATIONS, "user-1", msgspec.json.encode(slate("user-1", "i1")))

        user = wait_until(lambda: polled(tail).user())

        tail.close()
    assert user.user_id == "user-1"
    assert user.clicks == ("Redshift, part 1",)
