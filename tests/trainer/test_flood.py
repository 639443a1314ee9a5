"""One user or one item is bounded in every window, however micro-batches are cut."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stream.examples import ClickExample, ExampleId
from tests.trainer.clicks import click, in_batches
from trainer.flood import Flood

events = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=80)


def clicks_of(pairs: list[tuple[str, str]]) -> list[ClickExample]:
    return [click(ExampleId("clicks", 0, place, 0), user, ["i"], item) for place, (user, item) in enumerate(pairs)]


def let(pairs: list[tuple[str, str]], *, size: int, window: int = 20) -> list[int]:
    flood = Flood()
    return [
        example.id.offset
        for batch in in_batches(clicks_of(pairs), size)
        for example in flood.let(batch, window=window, per_user=5, per_item=6).examples
    ]


@given(pairs=events, size=st.integers(1, 30))
def test_what_is_let_through_depends_on_the_stream_alone(pairs: list[tuple[str, str]], size: int) -> None:
    assert let(pairs, size=size) == let(pairs, size=1)


@given(pairs=events)
def test_no_window_holds_more_of_a_user_or_an_item_than_allowed(pairs: list[tuple[str, str]]) -> None:
    kept = let(pairs, size=7)

    for start in range(0, len(pairs), 20):
        of_window = [pairs[place] for place in kept if start <= place < start + 20]
        assert max(Counter(user for user, _ in of_window).values(), default=0) <= 5
        assert max(Counter(item for _, item in of_window).values(), default=0) <= 6


def test_a_crowd_within_bounds_is_let_through_whole_and_each_refusal_has_its_reason() -> None:
    crowd = [(f"u{number}", f"i{number % 4}") for number in range(16)]

    assert len(let(crowd, size=4)) == 16

    flooded = Flood().let(clicks_of([("u", "x")] * 8), window=20, per_user=5, per_item=20)
    assert flooded.dropped == {"user_flood": 3}
    flooded = Flood().let(clicks_of([(f"u{n}", "x") for n in range(8)]), window=20, per_user=5, per_item=6)
    assert flooded.dropped == {"item_flood": 2}


def test_what_is_remembered_is_bounded_by_the_window() -> None:
    flood = Flood()

    for place in range(100):
        flood.let(
            [click(ExampleId("clicks", 0, place, 0), f"u{place}", ["i"], f"i{place}")],
            window=10,
            per_user=5,
            per_item=5,
        )
        assert len(flood.users) <= 10 >= len(flood.items)
