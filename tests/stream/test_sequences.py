from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Cause
from stream.sequences import (
    Accounts,
    Applied,
    Inherited,
    ParkedClick,
    Times,
    UserState,
    decode_outline,
    decode_state,
    encode_state,
    times_of,
)
from stream.topics import CLICKS

ascending = st.lists(st.integers(0, 4_000_000_000_000), min_size=1, max_size=20).map(sorted)
whole_seconds = ascending.map(lambda times: [time - time % 1_000 for time in times])


@given(ascending | whole_seconds)
def test_times_come_back_as_they_were(times_ms: list[int]) -> None:
    assert times_of(times_ms).to_ms() == tuple(times_ms)


@given(ascending | whole_seconds, st.integers(2, 25))
def test_adding_times_one_by_one_keeps_the_newest(times_ms: list[int], keep: int) -> None:
    times = Times(newest_ms=times_ms[0])

    for time_ms in times_ms[1:]:
        times = times.then(time_ms, keep=keep)

    assert times.to_ms() == tuple(times_ms)[-keep:]


@given(ascending | whole_seconds, st.integers(0, 4_000_000_000_000))
def test_the_number_of_earlier_times_is_that_of_a_search_among_all_of_them(times_ms: list[int], at_ms: int) -> None:
    for asked_ms in (at_ms, times_ms[0], times_ms[-1], times_ms[-1] + 1):
        assert times_of(times_ms).before(asked_ms) == bisect_left(times_ms, asked_ms)


@given(ascending | whole_seconds, st.integers(0, 4_000_000_000_000))
def test_the_place_of_a_time_is_behind_all_that_are_not_newer(times_ms: list[int], at_ms: int) -> None:
    state = UserState(items=tuple(map(str, times_ms)), times=times_of(times_ms))

    for asked_ms in (at_ms, times_ms[0], times_ms[len(times_ms) // 2], times_ms[-1]):
        assert state.place_of(asked_ms) == bisect_right(times_ms, asked_ms)


def test_without_items_every_time_has_the_first_place() -> None:
    assert UserState().place_of(1_700_000_000_000) == 0


def test_a_user_of_fifty_interactions_takes_less_than_600_bytes() -> None:
    minutes_apart = [1_700_000_000_123 + number * 61_007 for number in range(50)]
    state = UserState(
        items=tuple(f"{1_000 + number}" for number in range(50)),
        times=times_of(minutes_apart),
        clicks_applied=50,
        click=(3, 1_234_567, 1_700_000_000_000),
        clock_ms=minutes_apart[-1],
        event_ids=bytes(64),
    )

    assert len(encode_state(state)) < 600


def test_fifty_clicks_hours_apart_on_long_ids_take_less_than_600_bytes() -> None:
    hours_apart = [1_700_000_000_123 + number * 7_200_007 for number in range(50)]
    state = UserState(
        items=tuple(f"item-{10_000 + number}" for number in range(50)),
        times=times_of(hours_apart),
        clicks_applied=50,
        applied=Applied(1_234_567, 7_654_321, 1_234_567),
        click=(3, 1_234_567, 1_700_000_000_000),
        clock_ms=hours_apart[-1],
        event_ids=bytes(64),
        accounts=Accounts(clicks_duplicate=100, items_seen=1_000, items_expired=900),
    )

    assert len(encode_state(state)) < 600


@given(ascending | whole_seconds, st.sampled_from(["", "item-", "x"]))
def test_a_state_of_the_first_version_reads_like_one_of_this(times_ms: list[int], beginning: str) -> None:
    state = UserState(items=tuple(f"{beginning}{at_ms}" for at_ms in times_ms), times=times_of(times_ms), clock_ms=7)

    assert decode_state(msgspec.msgpack.encode(state)) == decode_state(encode_state(state)) == state


@pytest.mark.parametrize("encode", [encode_state, msgspec.msgpack.encode])
def test_an_outline_says_what_the_whole_state_says(encode: Callable[[UserState], bytes]) -> None:
    parked = ParkedClick("i", 1, "r", None, 2, ("j",))
    heir = Inherited(users=1, applied=Applied(clicks=9))
    state = UserState(items=("a", "b"), times=times_of([1, 5]), clock_ms=7, parked=(parked,), inherited=heir)

    outline = decode_outline(encode(state))

    for name in ("clock_ms", "applied", "slates", "closed", "parked", "inherited"):
        assert getattr(outline, name) == getattr(state, name)


def test_the_bytes_of_this_version_do_not_change() -> None:
    state = UserState(items=("item-7", "item-12"), times=times_of([1_000, 2_001]), clicks_applied=2)

    assert encode_state(state).hex() == (
        "c1029cc40901056974656d2d7a1293cd07d1c404e9030000010293ffffffc000c4009b0000000000000000000000909090c0"
    )


def test_a_state_of_a_later_version_is_refused_in_words() -> None:
    with pytest.raises(msgspec.DecodeError, match="written by a later sasrec-stream"):
        decode_state(b"\xc1\x03\x9c")


def test_a_state_whose_items_are_packed_otherwise_is_no_state() -> None:
    broken = encode_state(UserState(items=("a", "b"))).replace(b"\x00\x92\xa1a\xa1b", b"\x09\x92\xa1a\xa1b")

    with pytest.raises(msgspec.DecodeError, match="not as they are packed"):
        decode_state(broken)


def test_a_state_written_before_a_field_was_added_still_reads() -> None:
    old = b"\x92\x91\xa1i\x91\xcd\x03\xe8"  # items and times only

    state = decode_state(old)

    assert state.items == ("i",)
    assert state.times_ms == (1_000,)


def test_the_cause_names_the_click_by_topic_partition_and_offset() -> None:
    assert UserState().cause is None
    assert UserState(click=(1, 7, 42)).cause == Cause(topic=CLICKS, partition=1, offset=7, arrived_at_ms=42)


def test_a_user_without_items_has_no_times() -> None:
    assert UserState().times_ms == ()
