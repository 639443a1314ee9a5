from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from deploy.local.audience import Audience
from deploy.local.audience_process import Produced, produced_file, run_audience
from deploy.local.settings import AudienceSettings
from deploy.local.world import (
    REMEMBERED,
    Visitor,
    World,
    after_click,
    appeal,
    arrive,
    browse,
    click_probability,
    examination,
    look,
    make_world,
)
from deploy.settings import Settings, StateSettings
from stream.clients import consumer, producer
from stream.events import Click, Impression, Recommendation, RecommendedItem
from stream.settings import KafkaSettings
from stream.topics import CLICKS, IMPRESSIONS, ITEMS, RECOMMENDATIONS, REQUESTS

NOW_MS = 1_760_000_000_000


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(AudienceSettings(users=50))


def slate(user_id: str, *, request_id: str = "request-1", items: tuple[str, ...]) -> Recommendation:
    return Recommendation(
        request_id=request_id,
        user_id=user_id,
        policy="test",
        generated_at_ms=NOW_MS,
        items=tuple(RecommendedItem(item_id=item, position=slot) for slot, item in enumerate(items)),
    )


def test_the_same_seed_is_the_same_world_and_another_seed_is_not() -> None:
    one, again, other = (make_world(AudienceSettings(seed=seed)) for seed in (1, 1, 2))

    assert np.array_equal(one.taste_UC, again.taste_UC)
    assert not np.array_equal(one.taste_UC, other.taste_UC)


def test_every_item_has_a_title_of_its_own(world: World) -> None:
    assert len({item.item_id for item in world.items}) == len({item.title for item in world.items}) == 240


def test_the_next_part_is_the_next_title_of_the_same_series(world: World) -> None:
    first = next(row for row, item in enumerate(world.items) if item.title == "Vacuum Choir, part 1")

    assert world.items[world.next_part_I[first]].title == "Vacuum Choir, part 2"
    assert world.next_part_I[first + 4] == -1


def test_organic_clicks_follow_the_softmax_of_the_appeal(world: World) -> None:
    rng = np.random.default_rng(7)
    visitor = arrive(world, 3, rng)
    likely = np.exp(appeal(world, visitor))
    expected_I = likely / likely.sum()

    draws = 20_000
    counted_I = np.bincount([browse(world, visitor, rng) for _ in range(draws)], minlength=len(world.items))

    error_I = np.sqrt(expected_I * (1 - expected_I) / draws)
    assert np.all(np.abs(counted_I / draws - expected_I) < 5 * error_I + 1 / draws)


def test_slots_are_examined_by_position_alone_and_clicked_by_taste_alone(world: World) -> None:
    rng = np.random.default_rng(8)
    visitor = arrive(world, 4, rng)
    slate_K = [int(row) for row in np.argsort(-appeal(world, visitor))[[0, 40, 5, 200, 10]]]

    looks = [look(world, visitor, slate_K, rng) for _ in range(20_000)]
    examined_K = np.bincount([slot for one in looks for slot in one.examined], minlength=5)
    clicked_K = np.bincount([slot for one in looks for slot in one.clicked], minlength=5)

    theta_K = examination(5, position_bias=world.position_bias)
    gamma_K = click_probability(appeal(world, visitor)[slate_K])
    assert np.abs(examined_K / len(looks) - theta_K).max() < 0.015
    assert np.abs(clicked_K / examined_K - gamma_K).max() < 0.025


def test_the_next_part_of_a_series_pleases_more_after_the_part_before(world: World) -> None:
    idle = Visitor(user=0, focus=3)
    started = Visitor(user=0, focus=3, recent=(100,))
    next_part = int(world.next_part_I[100])

    assert appeal(world, started)[next_part] > appeal(world, idle)[next_part]


@given(st.lists(st.integers(0, 239), max_size=60), st.integers(0, 2**32))
def test_nobody_clicks_again_what_was_clicked_recently(clicked: list[int], seed: int) -> None:
    world = make_world(AudienceSettings(users=1))
    rng = np.random.default_rng(seed)
    visitor = arrive(world, 0, rng)
    for item in clicked:
        visitor = after_click(world, visitor, item, rng)

    assert len(visitor.recent) == min(len(clicked), REMEMBERED)
    assert browse(world, visitor, rng) not in visitor.recent
    assert look(world, visitor, list(visitor.recent), rng).clicked == ()


def test_an_item_that_the_world_does_not_know_is_seen_but_never_clicked(world: World) -> None:
    rng = np.random.default_rng(1)

    looks = [look(world, arrive(world, 0, rng), [None], rng) for _ in range(100)]

    assert {one.examined for one in looks} == {(0,)}
    assert {one.clicked for one in looks} == {()}


def test_a_model_of_the_order_can_beat_popularity_by_far(world: World) -> None:
    rng = np.random.default_rng(2)
    visitors = [arrive(world, user, rng) for user in range(50)]
    popular: Counter[int] = Counter()
    ranked_high = among_popular = 0

    for _ in range(60):
        for user, visitor in enumerate(visitors):
            item = browse(world, visitor, rng)
            ranked_high += item in np.argsort(-appeal(world, visitor))[:10]
            among_popular += item in {row for row, _ in popular.most_common(10)}
            popular[item] += 1
            visitors[user] = after_click(world, visitor, item, rng)

    assert ranked_high > 4 * among_popular


def test_the_same_seed_times_and_slates_give_the_same_messages() -> None:
    first, again = (Audience(AudienceSettings(), run="run") for _ in range(2))

    for audience in (first, again):
        audience.receive(slate("user-00001", items=("item-0001", "item-0002", "item-0003")))

    assert first.act(now_ms=NOW_MS, passed_seconds=3.0) == again.act(now_ms=NOW_MS, passed_seconds=3.0)


def test_rates_are_kept_over_many_short_ticks() -> None:
    audience = Audience(AudienceSettings(organic_clicks_per_second=7.0, requests_per_second=0.5), run="run")

    messages = [message for _ in range(200) for message in audience.act(now_ms=NOW_MS, passed_seconds=0.05)]

    assert Counter(message.topic for message in messages) == {CLICKS: 70, REQUESTS: 5}
    assert len({message.record.event_id for message in messages}) == 75  # type: ignore[attr-defined]


def test_a_look_names_the_slate_and_only_what_was_examined() -> None:
    settings = AudienceSettings(organic_clicks_per_second=0.0, requests_per_second=0.0, looks_per_second=1.0)
    audience = Audience(settings, run="run")
    items = tuple(item.item_id for item in audience.world.items[:30])
    impressions: list[Impression] = []
    clicks: list[Click] = []

    for number in range(50):
        audience.receive(slate("user-00002", request_id=f"request-{number}", items=items))
        for message in audience.act(now_ms=NOW_MS, passed_seconds=1.0):
            (impressions if message.topic == IMPRESSIONS else clicks).append(message.record)  # type: ignore[arg-type]

    seen = {(one.request_id, item.item_id, item.position) for one in impressions for item in one.items}
    chosen = {(click.request_id, click.item_id, click.position) for click in clicks}
    assert len(impressions) == 50
    assert len(seen) < 50 * 30
    assert chosen
    assert chosen <= seen


def test_only_the_newest_slate_of_a_user_is_looked_at_and_once() -> None:
    settings = AudienceSettings(organic_clicks_per_second=0.0, requests_per_second=0.0, looks_per_second=2.0)
    audience = Audience(settings, run="run")
    for number in range(3):
        audience.receive(slate("user-00003", request_id=f"request-{number}", items=("item-0001",)))

    messages = audience.act(now_ms=NOW_MS, passed_seconds=5.0)

    assert {message.record.request_id for message in messages} == {"request-2"}  # type: ignore[attr-defined]
    assert [message.topic for message in messages].count(IMPRESSIONS) == 1


def test_a_slate_for_somebody_else_is_left_alone() -> None:
    audience = Audience(AudienceSettings(organic_clicks_per_second=0.0, requests_per_second=0.0), run="run")

    audience.receive(slate("stranger", items=("item-0001",)))

    assert audience.act(now_ms=NOW_MS, passed_seconds=1.0) == []


@pytest.mark.broker
def test_the_audience_counts_exactly_what_stands_on_the_topics(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Callable[[Callable[[], Any]], Any]
) -> None:
    settings = Settings(
        kafka=kafka,
        state=StateSettings(directory=tmp_path),
        audience=AudienceSettings(users=5, organic_clicks_per_second=200.0, looks_per_second=50.0),
    )
    stop = Event()
    audience = Thread(target=run_audience, args=(settings, stop))
    audience.start()
    with producer(kafka) as applications:
        served = slate("user-00001", items=("item-0001", "item-0002", "item-0003", "item-0004"))
        wait_until(
            lambda: (
                applications.send(kafka.topic(RECOMMENDATIONS), key=b"user-00001", value=msgspec.json.encode(served)),
                _produced(tmp_path).acknowledged.get(IMPRESSIONS),
            )[1]
        )
    stop.set()
    audience.join()

    produced = _produced(tmp_path)

    assert produced.failed == {}
    assert produced.acknowledged == {
        topic: count for topic in (CLICKS, IMPRESSIONS, REQUESTS, ITEMS) if (count := _written(kafka, topic))
    }
    assert produced.acknowledged[ITEMS] == 240


def _produced(directory: Path) -> Produced:
    file = produced_file(directory)
    return msgspec.json.decode(file.read_bytes(), type=Produced) if file.exists() else Produced({}, {})


def _written(kafka: KafkaSettings, name: str) -> int:
    with consumer(kafka) as reader:
        topic = kafka.topic(name)
        partitions = [TopicPartition(topic, partition) for partition in reader.partitions_for_topic(topic)]
        return sum(reader.end_offsets(partitions).values())
