"""What the scoring worker remembers of users."""

from __future__ import annotations

import msgspec

from deploy.scoring.histories import Histories, History, decode_history
from stream.sequences import UserState, encode_state, times_of


def state(*items: str, click: tuple[int, int, int] | None = None) -> History:
    times = times_of(range(1_700_000_000_000, 1_700_000_000_000 + 1_000 * len(items), 1_000)) if items else None
    whole = UserState(items=items, click=click) if times is None else UserState(items=items, click=click, times=times)
    return decode_history(encode_state(whole))


def test_a_history_is_the_beginning_of_a_users_state() -> None:
    assert UserState.__struct_fields__[1 : len(History.__struct_fields__)] == History.__struct_fields__[1:]

    history = state("x", "y", click=(1, 2, 3))

    assert history.items == ("x", "y")
    assert history.cause == UserState(items=("x", "y"), click=(1, 2, 3)).cause


def test_the_history_of_a_state_of_the_first_version_reads_alike() -> None:
    whole = UserState(items=("x-1", "x-22"), clicks_applied=2, click=(1, 2, 3), times=times_of([1_000, 2_000]))

    assert decode_history(msgspec.msgpack.encode(whole)) == decode_history(encode_state(whole))


def test_the_newest_state_counts_and_an_unknown_user_has_had_nothing() -> None:
    histories = Histories(max_users=10)
    histories.put("a", state("x"), partition=0)
    histories.put("a", state("x", "y"), partition=0)

    assert histories.items_of("a") == ("x", "y")
    assert histories.items_of("b") == ()


def test_only_a_click_that_is_new_asks_for_a_slate() -> None:
    histories = Histories(max_users=10)

    first = histories.put("a", state("x", click=(0, 5, 9)), partition=0)
    slates_came_back = histories.put("a", state("x"), partition=0)
    written_again = histories.put("a", state("x", click=(0, 5, 9)), partition=0)
    second = histories.put("a", state("x", "y", click=(0, 6, 9)), partition=0)

    assert first is not None
    assert (first.topic, first.partition, first.offset) == ("clicks", 0, 5)
    assert slates_came_back is None
    assert written_again is None
    assert second is not None
    assert second.offset == 6


def test_beyond_the_bound_the_least_recently_active_user_goes() -> None:
    histories = Histories(max_users=2)
    for user_id in ("a", "b", "a", "c"):
        histories.put(user_id, state("x"), partition=0)

    assert len(histories) == 2
    assert histories.items_of("b") == ()
    assert histories.items_of("a") == ("x",)


def test_users_of_a_partition_that_went_to_another_worker_are_forgotten() -> None:
    histories = Histories(max_users=10)
    histories.put("a", state("x"), partition=0)
    histories.put("b", state("x"), partition=1)

    histories.forget(frozenset({0}))

    assert (histories.items_of("a"), histories.items_of("b")) == ((), ("x",))


def test_a_tombstone_makes_a_user_unknown() -> None:
    histories = Histories(max_users=10)
    histories.put("a", state("x"), partition=0)

    histories.remove("a")

    assert histories.items_of("a") == ()
