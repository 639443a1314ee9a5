"""Coalescing: every click is learnt once, from its own history."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from model.catalogue import PADDING
from stream.examples import ClickExample, ExampleId, Served
from trainer.batch import Stretch, at_request, coalesce, collate, cut, in_sequence, runs, weighted

ITEMS = [f"item-{number}" for number in range(6)]


def click(user_id: str, context: Sequence[str], item_id: str, *, offset: int = 0) -> ClickExample:
    return ClickExample(
        id=ExampleId("clicks", 0, offset, 0),
        user_id=user_id,
        context=tuple(context),
        item_id=item_id,
        timestamp_ms=1_700_000_000_000,
        arrived_at_ms=1_700_000_000_000,
        served=None,
    )


@st.composite
def micro_batches(draw: st.DrawFn) -> list[ClickExample]:
    """Clicks of a few users as the stream makes them, with some examples missing from the micro-batch."""
    context_length = draw(st.integers(1, 6))
    histories: dict[str, list[str]] = {}
    clicks = []
    for offset, (user_id, item_id, delivered) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ITEMS), st.integers(0, 3)), max_size=40))
    ):
        history = histories.setdefault(user_id, [])
        if delivered:
            clicks.append(click(user_id, history[-context_length:], item_id, offset=offset))
        history.append(item_id)
    return clicks


@given(clicks=micro_batches(), max_length=st.integers(1, 8), min_context=st.integers(1, 8))
def test_every_click_with_a_history_is_one_target_position(
    clicks: list[ClickExample], max_length: int, min_context: int
) -> None:
    chains = coalesce(runs(clicks), max_length=max_length, min_context=min_context)

    targets = [index for chain in chains for index in chain.examples]
    assert sorted(targets) == [index for index, example in enumerate(clicks) if example.context]


@given(clicks=micro_batches(), max_length=st.integers(1, 8), min_context=st.integers(1, 8))
def test_a_click_is_learnt_from_the_end_of_its_own_history(
    clicks: list[ClickExample], max_length: int, min_context: int
) -> None:
    for chain in coalesce(runs(clicks), max_length=max_length, min_context=min_context):
        first = len(chain.items) - len(chain.examples)
        for order, index in enumerate(chain.examples):
            visible, example = chain.items[: first + order], clicks[index]
            shared = min(len(visible), len(example.context))
            assert chain.items[first + order] == example.item_id
            assert visible[-shared:] == example.context[-shared:]
            assert shared >= min(len(example.context), min_context, max_length)
            assert len(visible) <= max_length


@given(clicks=micro_batches(), max_length=st.integers(1, 8))
def test_with_the_longest_context_the_network_reads_what_one_row_per_click_would_give_it(
    clicks: list[ClickExample], max_length: int
) -> None:
    naive = {index: example.context[-max_length:] for index, example in enumerate(clicks) if example.context}

    chains = coalesce(runs(clicks), max_length=max_length, min_context=max_length)

    for chain in chains:
        for order, index in enumerate(chain.examples):
            visible = chain.items[: len(chain.items) - len(chain.examples) + order]
            assert visible[-len(naive[index]) :] == naive[index]


def test_a_run_of_clicks_becomes_one_sequence() -> None:
    clicks = [click("u", "ab", "c"), click("v", "x", "y"), click("u", "abc", "d"), click("u", "bcd", "e")]

    chains = coalesce(runs(clicks), max_length=10, min_context=10)

    assert [(chain.items, chain.examples) for chain in chains] == [
        (("a", "b", "c", "d", "e"), (0, 2, 3)),
        (("x", "y"), (1,)),
    ]


def on_slate(example: ClickExample, *, clicks_since: int) -> ClickExample:
    return replace(example, served=Served("p", "r", 0, 0.5, "exact", "exploit", clicks_since=clicks_since))


def test_a_further_click_on_a_slate_is_learnt_from_the_history_at_the_time_of_the_request() -> None:
    clicks = [
        on_slate(click("u", "ab", "c"), clicks_since=0),
        on_slate(click("u", "abc", "d"), clicks_since=1),
        click("u", "abcd", "e"),
    ]
    weight_N = np.array([2.0, 3.0, 1.0])

    chains = coalesce(runs(clicks), max_length=10, min_context=10)
    stretches = [weighted(chain, in_sequence(clicks, weight_N)) for chain in chains]

    assert stretches == [Stretch(("a", "b", "c", "d", "e"), (2.0, 0.0, 1.0))]
    assert list(at_request(clicks, weight_N, max_length=10)) == [Stretch(("a", "b", "d"), (3.0,))]
    assert list(at_request(clicks, weight_N, max_length=1)) == [Stretch(("b", "d"), (3.0,))]


def test_a_click_that_is_worth_nothing_or_whose_request_had_no_history_has_no_sequence_of_its_own() -> None:
    worthless = on_slate(click("u", "abc", "d"), clicks_since=1)
    without_history = on_slate(click("u", "ab", "c"), clicks_since=2)

    assert not list(at_request([worthless, without_history], np.array([0.0, 2.0]), max_length=10))


def test_clicks_whose_contexts_do_not_follow_one_another_stand_alone() -> None:
    clicks = [click("u", "ab", "c"), click("u", "abcd", "e")]

    chains = coalesce(runs(clicks), max_length=10, min_context=10)

    assert [chain.examples for chain in chains] == [(0,), (1,)]


def test_a_long_chain_is_cut_so_that_every_piece_begins_with_enough_context() -> None:
    clicks = [click("u", "abcdefghij"[:length], "abcdefghijk"[length]) for length in range(4, 11)]
    chain = coalesce(runs(clicks), max_length=100, min_context=1)[0]

    pieces = list(cut(chain, max_length=5, min_context=3))

    assert ["".join(piece.items) for piece in pieces] == ["bcdefg", "efghij", "fghijk"]
    assert [piece.examples for piece in pieces] == [(0, 1, 2), (3, 4, 5), (6,)]


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=20),
    weight=st.floats(0.5, 2.0, width=32),
)
def test_collating_loses_no_item_and_pads_on_the_left(lengths: list[int], weight: float) -> None:
    stretches = [Stretch(tuple(str(item + 1) for item in range(length)), (weight,)) for length in lengths]

    groups = collate(stretches, lambda items: np.array([int(item) for item in items]))

    rows = sorted(tuple(row[row != PADDING].tolist()) for group in groups for row in group.row_BT)
    assert rows == sorted(tuple(range(1, length)) for length in lengths)
    for group in groups:
        assert (group.row_BT[:, -1] != PADDING).all()
        assert (group.target_BT[:, :-1] == PADDING).all()
        assert (group.weight_BT[:, -1] == weight).all()
        assert (group.row_BT[:, 0] != PADDING).any()


def test_a_click_without_weight_is_no_target() -> None:
    chain = coalesce(runs([click("u", "a", "b"), click("u", "ab", "c")]), max_length=9, min_context=9)[0]

    (group,) = collate([weighted(chain, np.array([0.0, 2.0]))], lambda items: np.array([ord(item) for item in items]))

    assert group.row_BT.tolist() == [[ord("a"), ord("b")]]
    assert group.target_BT.tolist() == [[PADDING, ord("c")]]
    assert group.weight_BT.tolist() == [[0.0, 2.0]]


def test_the_first_item_of_a_sequence_is_no_target_whatever_it_is_padded_to() -> None:
    stretches = [Stretch(("a", "b", "c"), (1.0,) * 3), Stretch(("d", "e", "f", "g"), (1.0,) * 4)]

    (group,) = collate(stretches, lambda items: np.array([ord(item) for item in items]))

    assert [[chr(row) for row in target_T if row] for target_T in group.target_BT.tolist()] == [list("bc"), list("efg")]
