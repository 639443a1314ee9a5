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

HELD_BITS = 32
"""From which on a key says how many items its row had held; below it, the row."""
ROW_MASK = (1 << HELD_BITS) - 1


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

    At most `max_pairs` pairs: past that all counts are halved, and pairs seen once are forgotten. A pair names the row
    of its second item together with how many items that row has held before, so that what led to an item that is gone
    never counts for the one in its place.
    """

    def __init__(self, *, max_pairs: int, capacity: int) -> None:
        self._max_pairs = max_pairs
        self.pairs = 0
        self._next: list[Int[np.ndarray, " S"]] = [_NO_KEYS] * capacity
        self._count: list[Int[np.ndarray, " S"]] = [_NONE] * capacity
        self._used = np.zeros(capacity, dtype=np.int64)
        self._held = np.zeros(capacity, dtype=np.int64)

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self._used)

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity`."""
        new = capacity - len(self._used)
        self._next += [_NO_KEYS] * new
        self._count += [_NONE] * new
        self._used, self._held = np.pad(self._used, (0, new)), np.pad(self._held, (0, new))

    def forget(self, rows: Int[np.ndarray, " F"]) -> None:
        """Rows that were given to other items: what followed them, and what led to them."""
        self.pairs -= int(self._used[rows].sum())
        self._used[rows] = 0
        self._held[rows] += 1
        for row in rows.tolist():
            self._next[row], self._count[row] = _NO_KEYS, _NONE

    def count(self, last_N: Int[np.ndarray, " N"], target_N: Int[np.ndarray, " N"]) -> None:
        """Counts steps from one item to the next; a user without history makes none, nor does an item without a row."""
        key_N = self._held[target_N] << HELD_BITS | target_N
        for last, target, key in zip(last_N.tolist(), target_N.tolist(), key_N.tolist(), strict=True):
            if PADDING not in (last, target):
                self._count_step(last, key)
        if self.pairs > self._max_pairs:
            self._halve()

    def _count_step(self, last: int, key: int) -> None:
        used = int(self._used[last])
        place = (self._next[last][:used] == key).nonzero()[0]
        if place.size:
            self._count[last][place[0]] += 1
            return
        if used == len(self._next[last]):
            self._next[last] = np.concatenate((self._next[last], np.zeros(max(4, used), dtype=np.int64)))
            self._count[last] = np.concatenate((self._count[last], np.zeros(max(4, used), dtype=np.int32)))
        self._next[last][used], self._count[last][used] = key, 1
        self._used[last] += 1
        self.pairs += 1

    def _halve(self) -> None:
        for row in np.flatnonzero(self._used):
            count_S = self._count[row][: self._used[row]] // 2
            key_S = self._next[row][: len(count_S)]
            stays_S = (count_S > 0) & self._is_current(key_S)
            self._next[row], self._count[row] = key_S[stays_S], count_S[stays_S]
            self._used[row] = len(self._next[row])
        self.pairs = int(self._used.sum())

    def followers(self, last_N: Int[np.ndarray, " N"]) -> Successors:
        """What followed each of these items, and how often."""
        used_N = self._used[last_N]
        keys = [self._next[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        counts = [self._count[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        owner_S = np.repeat(np.arange(len(last_N)), used_N)
        key_S, count_S = np.concatenate((*keys, _NO_KEYS)), np.concatenate((*counts, _NONE)).astype(np.float64)
        return Successors(owner_S, key_S & ROW_MASK, count_S).where(self._is_current(key_S))

    def _is_current(self, key_S: Int[np.ndarray, " S"]) -> Bool[np.ndarray, " S"]:
        """Whether the row still holds the item that was meant."""
        is_current_S: np.ndarray = self._held[key_S & ROW_MASK] == key_S >> HELD_BITS
        return is_current_S

    def arrays(self) -> dict[str, np.ndarray]:
        """Part of the checkpoint."""
        rows = np.flatnonzero(self._used)
        return {
            "used": self._used,
            "held": self._held,
            "next": np.concatenate([*(self._next[row][: self._used[row]] for row in rows), _NO_KEYS]),
            "count": np.concatenate([*(self._count[row][: self._used[row]] for row in rows), _NONE]),
        }

    @classmethod
    def from_arrays(cls: type[Counts], arrays: dict[str, np.ndarray], *, max_pairs: int) -> Counts:
        """What `arrays` gave; older ones do not say what rows had held."""
        transitions = cls(max_pairs=max_pairs, capacity=len(arrays["used"]))
        transitions._used = arrays["used"].copy()
        transitions._held = arrays.get("held", transitions._held).copy()
        ends = np.cumsum(arrays["used"])[:-1]
        transitions._next = [part.copy() for part in np.split(arrays["next"].astype(np.int64), ends)]
        transitions._count = [part.copy() for part in np.split(arrays["count"], ends)]
        transitions.pairs = int(arrays["used"].sum())
        return transitions


_NONE = np.empty(0, dtype=np.int32)
_NO_KEYS = np.empty(0, dtype=np.int64)
