"""Sequences of similar length together, so that short ones do not pay for long ones. Shape: B sequences."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

GROUP_POSITIONS = 400
"""What one more group costs, in positions: the fixed part of a forward and backward pass."""


def length_groups(
    length_B: Int[np.ndarray, " B"], *, group_positions: int = GROUP_POSITIONS
) -> list[Int[np.ndarray, " _"]]:
    """Which sequences to pad to a common length, shortest first: the cheapest division there is.

    The cost of a group is its sequences times its longest, plus `group_positions`. The order within a group is that of
    the batch.
    """
    length_U, count_U = np.unique(length_B, return_counts=True)
    before_U = np.concatenate(([0], np.cumsum(count_U)))
    cheapest = np.zeros(len(length_U) + 1)
    start_of = np.zeros(len(length_U) + 1, dtype=np.int64)
    for end in range(1, len(length_U) + 1):
        costs = cheapest[:end] + (before_U[end] - before_U[:end]) * length_U[end - 1]
        start_of[end] = costs.argmin()
        cheapest[end] = costs[start_of[end]] + group_positions
    return [np.flatnonzero((length_B >= length_U[a]) & (length_B <= length_U[b - 1])) for a, b in _cuts(start_of)]


def _cuts(start_of: Int[np.ndarray, " E"]) -> list[tuple[int, int]]:
    """From the back: where the last group starts, where the one before it starts, ..."""
    cuts = []
    end = len(start_of) - 1
    while end > 0:
        cuts.append((int(start_of[end]), end))
        end = int(start_of[end])
    return cuts[::-1]
