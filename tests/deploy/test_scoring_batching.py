"""Who waits for a slate, and in which order they get it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.scoring.batching import Source, Waiting, Work, rest_seconds
from stream.events import Cause, Request

SEQUENCES = Source("sequences", 0)
REQUESTS = Source("requests", 0)


def click(user_id: str, offset: int, source: Source = SEQUENCES) -> Work:
    cause = Cause(topic="clicks", partition=source.partition, offset=offset, arrived_at_ms=0)
    return Work(user_id, f"clicks-{source.partition}-{offset}", cause, source, offset)


def request(user_id: str, offset: int) -> Work:
    asked = Request(event_id=f"request-{offset}", user_id=user_id, timestamp_ms=1_700_000_000_000)
    cause = Cause(topic="requests", partition=0, offset=offset, arrived_at_ms=0)
    return Work(user_id, asked.event_id, cause, REQUESTS, offset, asked)


def waiting(*work: Work, max_batch: int = 10, max_wait_seconds: float = 0.0) -> Waiting:
    made = Waiting(max_batch=max_batch, max_wait_seconds=max_wait_seconds)
    for one in work:
        made.add(one, now=0.0)
    return made


def test_users_are_taken_in_the_order_of_their_arrival_and_no_more_than_a_batch() -> None:
    line = waiting(click("a", 0), request("b", 0), click("c", 1), max_batch=2)

    assert [work.user_id for work in line.take()] == ["a", "b"]
    assert [work.user_id for work in line.take()] == ["c"]
    assert line.take() == []


def test_a_newer_click_takes_the_place_of_an_older_one_of_the_same_user() -> None:
    line = waiting(click("a", 0), click("b", 1))

    assert line.add(click("a", 2), now=0.0)

    assert [work.request_id for work in line.take()] == ["clicks-0-2", "clicks-0-1"]


def test_requests_of_one_user_are_all_answered() -> None:
    line = waiting(request("a", 0), click("a", 0), request("a", 1))

    assert [work.request_id for work in line.take()] == ["request-0", "clicks-0-0", "request-1"]


def test_a_user_waits_for_company_until_the_batch_is_full_or_time_is_up() -> None:
    line = waiting(max_batch=2, max_wait_seconds=1.0)
    assert line.seconds_left(0.0) is None

    line.add(click("a", 0), now=10.0)
    assert line.seconds_left(10.25) == 0.75
    assert line.seconds_left(12.0) == 0.0

    line.add(click("b", 1), now=10.25)
    assert line.seconds_left(10.25) == 0.0


def test_who_comes_while_the_worker_rests_waits_for_company_and_who_comes_later_does_not() -> None:
    line = waiting(click("a", 0), max_wait_seconds=1.0)
    line.take()
    line.rest(until=10.0)

    line.add(click("b", 1), now=9.75)
    assert line.seconds_left(9.75) == 0.25
    line.take()

    line.add(click("c", 2), now=10.5)
    assert line.seconds_left(10.5) == 0.0
    line.take()

    line.rest(until=20.0)
    line.add(click("d", 3), now=11.0)
    assert line.seconds_left(11.0) == 1.0


@pytest.mark.parametrize(
    ("took", "users", "rests"), [(0.002, 1, 0.002), (0.02, 1, 0.005), (0.004, 3, 0.012), (0.02, 64, 0.02)]
)
def test_the_worker_rests_as_long_as_a_batch_took_and_longer_where_it_had_several_users(
    took: float, users: int, rests: float
) -> None:
    assert rest_seconds(took, users=users) == pytest.approx(rests)


def test_a_request_that_waits_for_a_click_is_held_until_it_comes_and_is_not_committed_past() -> None:
    line = waiting(click("a", 5))
    line.hold(request("b", 3), until=2.0)

    line.release("a", now=0.0, is_fresh=lambda _: True)
    assert [work.user_id for work in line.take()] == ["a"]
    assert line.first_offsets() == {REQUESTS: 3}

    line.release("b", now=0.5, is_fresh=lambda _: False)
    assert line.take() == []
    line.release("b", now=0.5, is_fresh=lambda _: True)
    assert ([work.user_id for work in line.take()], line.held) == (["b"], 0)


def test_a_held_request_is_due_when_its_time_is_up() -> None:
    line = waiting()
    line.hold(request("a", 0), until=2.0)
    line.hold(request("a", 1), until=3.0)

    assert line.seconds_left(1.5) == 0.5
    line.release_overdue(2.0)

    assert [work.request_id for work in line.take()] == ["request-0"]
    assert line.first_offsets() == {REQUESTS: 1}


def test_held_requests_of_another_worker_do_not_wait_any_more() -> None:
    line = waiting()
    line.hold(request("a", 0), until=2.0)

    line.drop([REQUESTS])

    assert (len(line), line.held, line.first_offsets()) == (0, 0, {})


def test_what_another_worker_answers_now_does_not_wait_any_more() -> None:
    elsewhere = Source("sequences", 1)
    line = waiting(click("a", 0), click("b", 7, elsewhere))

    line.drop([elsewhere])

    assert [work.user_id for work in line.take()] == ["a"]


def test_a_click_that_was_answered_already_answers_the_older_one_too() -> None:
    line = waiting(click("a", 0), request("a", 0))

    line.supersede(click("a", 2))

    assert [work.request_id for work in line.take()] == ["request-0"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30), st.integers(0, 5))
def test_nothing_that_waits_stands_before_the_first_offset_of_its_source(
    arrivals: list[tuple[str, bool]], batches: int
) -> None:
    line = Waiting(max_batch=3, max_wait_seconds=0.0)
    for offset, (user_id, is_click) in enumerate(arrivals):
        line.add(click(user_id, offset) if is_click else request(user_id, offset), now=0.0)
    for _ in range(batches):
        line.take()

    first = line.first_offsets()

    left = [work for _ in range(len(line)) for work in line.take()]
    assert first == {
        source: min(work.offset for work in left if work.source == source) for source in {work.source for work in left}
    }
