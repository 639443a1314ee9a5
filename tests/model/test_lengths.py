"""Groups of similar length: every sequence once, and no division is cheaper."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.lengths import length_groups

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40).map(np.array)


def cost(length_B: np.ndarray, groups: list[np.ndarray], group_positions: int) -> int:
    return sum(len(group) * int(length_B[group].max()) + group_positions for group in groups)


@given(length_B=lengths, group_positions=st.integers(0, 200))
def test_every_sequence_stands_in_one_group_shorter_groups_first(length_B: np.ndarray, group_positions: int) -> None:
    groups = length_groups(length_B, group_positions=group_positions)

    assert sorted(np.concatenate(groups).tolist()) == list(range(len(length_B)))
    for shorter, longer in itertools.pairwise(groups):
        assert length_B[shorter].max() < length_B[longer].min()


@given(length_B=st.lists(st.integers(1, 9), min_size=1, max_size=6).map(np.array), group_positions=st.integers(0, 20))
def test_no_division_is_cheaper(length_B: np.ndarray, group_positions: int) -> None:
    order = np.argsort(length_B, kind="stable")

    found = cost(length_B, length_groups(length_B, group_positions=group_positions), group_positions)

    every_choice = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(order)), cuts) for cuts in range(len(order))
    )
    assert found == min(cost(length_B, np.split(order, choice), group_positions) for choice in every_choice)


def test_groups_that_cost_nothing_leave_no_padding() -> None:
    length_B = np.array([3, 1, 3, 2])

    assert [group.tolist() for group in length_groups(length_B, group_positions=0)] == [[1], [3], [0, 2]]


def test_no_sequences_are_no_groups() -> None:
    assert length_groups(np.empty(0, dtype=np.int64)) == []
