"""Sequences of many lengths without padding, and those of similar length together where there must be some.

Shapes: B sequences, T slots, P positions of all sequences one after another, Q of these that come out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from model.catalogue import PADDING

GROUP_POSITIONS = 400
"""What one more group costs, in positions: the fixed part of a forward and backward pass."""


class Packed(NamedTuple):
    """B sequences of items, one after another, each oldest first."""

    row_P: Int[Tensor, " P"]
    length_B: Int[np.ndarray, " B"]
    last_B: Int[np.ndarray, " B"]
    """How many of the newest positions of each come out of the network: 0 to `length_B`."""

    def check(self) -> None:
        """That there are as many rows as the lengths say, and nothing comes out that did not go in.

        Raises:
            ValueError: it is not so.
        """
        is_within = ((self.last_B >= 0) & (self.last_B <= self.length_B)).all()
        if len(self.length_B) != len(self.last_B) or int(self.length_B.sum()) != len(self.row_P) or not is_within:
            raise ValueError(
                f"{len(self.row_P)} rows are no sequences of {self.length_B} of which {self.last_B} come out"
            )

    def whole(self) -> Packed:
        """The same with all positions coming out."""
        return self._replace(last_B=self.length_B)

    def newest(self) -> Packed:
        """The same with the newest position of each coming out."""
        return self._replace(last_B=np.minimum(self.length_B, 1))

    def outputs(self) -> Int[Tensor, " Q"]:
        """Which of the positions come out, in their order."""
        from_end_P = np.repeat(np.cumsum(self.length_B), self.length_B) - np.arange(self.length_B.sum())
        return torch.from_numpy(np.flatnonzero(from_end_P <= np.repeat(self.last_B, self.length_B)))


def packed(rows_BT: Int[Tensor, "B T"]) -> Packed:
    """Sequences without their padding, wherever it stands; all positions come out."""
    is_item_BT = rows_BT != PADDING
    length_B = is_item_BT.sum(dim=1).cpu().numpy()
    return Packed(rows_BT[is_item_BT], length_B, length_B)


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
