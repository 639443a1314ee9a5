"""What is counted of the stream: how popular items are, and which item follows which.

The trainer holds the network against these; the scoring worker recommends by them, where it is told to. Shapes: N
events, R rows of the catalogue, S successors.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from model.catalogue import PADDING

Counts = TypeVar("Counts", bound="TransitionCounts")


def popular_share(count_R: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Popularity in [0, 1): it orders what was counted equally often, and never more than that."""
    share_R: np.ndarray = count_R / (count_R.max() + 1.0)
    return share_R


class Successors(NamedTuple):
    """All successors of the last items of N events, side by side."""

    owner_S: Int[np.ndarray, " S"]
    """The event each belongs to."""
    row_S: Int[np.ndarray, " S"]
    count_S: Float[np.ndarray, " S"]

    def where(self, mask_S: Bool[np.ndarray, " S"]) -> Successors:
        """Those that a condition holds of."""
        return Successors(self.owner_S[mask_S], self.row_S[mask_S], self.count_S[mask_S])


class TransitionCounts:
    """How often an item followed another.

    At most `max_pairs` pairs: past that all counts are halved, and pairs seen once are forgotten.
    """

    def __init__(self, *, max_pairs: int, capacity: int) -> None:
        self._max_pairs = max_pairs
        self.pairs = 0
        self._next: list[Int[np.ndarray, " S"]] = [_NONE] * capacity
        self._count: list[Int[np.ndarray, " S"]] = [_NONE] * capacity
        self._used = np.zeros(capacity, dtype=np.int64)

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self._used)

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity`."""
        new = capacity - len(self._used)
        self._next += [_NONE] * new
        self._count += [_NONE] * new
        self._used = np.concatenate((self._used, np.zeros(new, dtype=np.int64)))

    def forget(self, rows: Int[np.ndarray, " F"]) -> None:
        """Rows that were given to other items: what followed them. What led to them ages away by halving."""
        self.pairs -= int(self._used[rows].sum())
        self._used[rows] = 0

    def count(self, last_N: Int[np.ndarray, " N"], target_N: Int[np.ndarray, " N"]) -> None:
        """Counts steps from one item to the next; a user without history makes none."""
        for last, target in zip(last_N.tolist(), target_N.tolist(), strict=True):
            if last != PADDING:
                self._count_step(last, target)
        if self.pairs > self._max_pairs:
            self._halve()

    def _count_step(self, last: int, target: int) -> None:
        used = int(self._used[last])
        place = np.flatnonzero(self._next[last][:used] == target)
        if place.size:
            self._count[last][place[0]] += 1
            return
        if used == len(self._next[last]):
            self._next[last] = np.resize(self._next[last], max(4, 2 * used))
            self._count[last] = np.resize(self._count[last], max(4, 2 * used))
        self._next[last][used], self._count[last][used] = target, 1
        self._used[last] += 1
        self.pairs += 1

    def _halve(self) -> None:
        for row in np.flatnonzero(self._used):
            count_S = self._count[row][: self._used[row]] // 2
            self._next[row] = self._next[row][: len(count_S)][count_S > 0]
            self._count[row] = count_S[count_S > 0]
            self._used[row] = len(self._next[row])
        self.pairs = int(self._used.sum())

    def followers(self, last_N: Int[np.ndarray, " N"]) -> Successors:
        """What followed each of these items, and how often."""
        used_N = self._used[last_N]
        rows = [self._next[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        counts = [self._count[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        owner_S = np.repeat(np.arange(len(last_N)), used_N)
        return Successors(owner_S, np.concatenate((*rows, _NONE)), np.concatenate((*counts, _NONE)).astype(np.float64))

    def arrays(self) -> dict[str, np.ndarray]:
        """Part of the checkpoint."""
        rows = np.flatnonzero(self._used)
        return {
            "used": self._used,
            "next": np.concatenate([*(self._next[row][: self._used[row]] for row in rows), _NONE]),
            "count": np.concatenate([*(self._count[row][: self._used[row]] for row in rows), _NONE]),
        }

    @classmethod
    def from_arrays(cls: type[Counts], arrays: dict[str, np.ndarray], *, max_pairs: int) -> Counts:
        """What `arrays` gave."""
        transitions = cls(max_pairs=max_pairs, capacity=len(arrays["used"]))
        transitions._used = arrays["used"].copy()
        ends = np.cumsum(arrays["used"])[:-1]
        transitions._next = [part.copy() for part in np.split(arrays["next"], ends)]
        transitions._count = [part.copy() for part in np.split(arrays["count"], ends)]
        transitions.pairs = int(arrays["used"].sum())
        return transitions


_NONE = np.empty(0, dtype=np.int32)
