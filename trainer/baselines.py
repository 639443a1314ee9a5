"""What the network has to beat, on the same events: the recently popular, and what followed the last item before.

Both predict the items that the user does not have yet, and a rank counts every tie against the ranker. Shapes: N
events, T items that the user has (rows, PADDING where there are fewer), R rows of the catalogue, S successors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from model.catalogue import PADDING

CUT = 10
"""Ranks are exact below it; from it on they are only known not to be below."""


class Events(NamedTuple):
    """Clicks to be predicted, as rows; every target is a live row that the user does not have."""

    history_NT: Int[np.ndarray, "N T"]
    """What the user has, oldest first, padded on the left."""
    target_N: Int[np.ndarray, " N"]

    @property
    def last_N(self) -> Int[np.ndarray, " N"]:  # noqa: N802 - a shape suffix
        """The item before the click; PADDING for a user of whom nothing is known."""
        return self.history_NT[:, -1]

    def distinct(self) -> Int[np.ndarray, "N T"]:
        """The history with every item once, PADDING in the place of repeats."""
        sorted_NT = np.sort(self.history_NT, axis=1)
        sorted_NT[:, 1:][sorted_NT[:, 1:] == sorted_NT[:, :-1]] = PADDING
        return sorted_NT


class Popular(NamedTuple):
    """Ranks by how often items were clicked lately, as the catalogue counts it."""

    count_R: Float[np.ndarray, " R"]

    def share_R(self) -> Float[np.ndarray, " R"]:  # noqa: N802 - a shape suffix
        """Popularity in [0, 1)."""
        share_R: np.ndarray = self.count_R / (self.count_R.max() + 1.0)
        return share_R

    def ranks(self, events: Events, *, up_to: int = CUT) -> Int[np.ndarray, " N"]:
        """0 for the most popular of what the user does not have; exact below `up_to`."""
        needed = min(up_to + events.history_NT.shape[1] + 1, len(self.count_R) - 1)
        top = np.sort(np.partition(self.count_R[PADDING + 1 :], -needed)[-needed:])
        target_count_N = self.count_R[events.target_N]
        had_NT = events.distinct()
        had_above_N = ((had_NT != PADDING) & (self.count_R[had_NT] >= target_count_N[:, None])).sum(axis=1)
        rank_N: np.ndarray = needed - np.searchsorted(top, target_count_N, side="left") - 1 - had_above_N
        return rank_N


class _Successors(NamedTuple):
    """All successors of the last items of N events, side by side."""

    owner_S: Int[np.ndarray, " S"]
    """The event each belongs to."""
    row_S: Int[np.ndarray, " S"]
    count_S: Float[np.ndarray, " S"]

    def where(self, mask_S: Bool[np.ndarray, " S"]) -> _Successors:
        return _Successors(self.owner_S[mask_S], self.row_S[mask_S], self.count_S[mask_S])


class Transitions:
    """How often an item followed another; equal counts are ordered by popularity, and so is what never followed.

    At most `max_pairs` pairs: past that all counts are halved, and pairs seen once are forgotten.
    """

    def __init__(self, *, max_pairs: int, capacity: int) -> None:
        self._max_pairs = max_pairs
        self.pairs = 0
        self._next: list[Int[np.ndarray, " S"]] = [_NONE] * capacity
        self._count: list[Int[np.ndarray, " S"]] = [_NONE] * capacity
        self._used = np.zeros(capacity, dtype=np.int64)

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

    def learn(self, events: Events) -> None:
        """Counts the step from the last item to the target; a user without history makes none."""
        for last, target in zip(events.last_N.tolist(), events.target_N.tolist(), strict=True):
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

    def ranks(self, events: Events, *, popular: Popular) -> Int[np.ndarray, " N"]:
        """0 for the likeliest follower among what the user does not have; exact below `CUT`."""
        share_R = popular.share_R()
        found = self._successors(events.last_N)
        is_target_S = found.row_S == events.target_N[found.owner_S]
        target_count_N = np.zeros(len(events.target_N))
        target_count_N[found.owner_S[is_target_S]] = found.count_S[is_target_S]
        score_N = target_count_N + share_R[events.target_N]
        ahead = found.where(~is_target_S & (found.count_S + share_R[found.row_S] >= score_N[found.owner_S]))
        ahead = _not_had(ahead, events)
        rank_N = np.bincount(ahead.owner_S, minlength=len(score_N))
        more_popular = ahead.where(share_R[ahead.row_S] >= share_R[events.target_N][ahead.owner_S])
        never_followed_N = popular.ranks(events, up_to=2 * CUT) - np.bincount(
            more_popular.owner_S, minlength=len(score_N)
        )
        return np.where((target_count_N == 0) & (rank_N < CUT), rank_N + never_followed_N, rank_N)

    def _successors(self, last_N: Int[np.ndarray, " N"]) -> _Successors:
        used_N = self._used[last_N]
        rows = [self._next[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        counts = [self._count[last][:used] for last, used in zip(last_N.tolist(), used_N.tolist(), strict=True)]
        owner_S = np.repeat(np.arange(len(last_N)), used_N)
        return _Successors(owner_S, np.concatenate((*rows, _NONE)), np.concatenate((*counts, _NONE)).astype(np.float64))

    def arrays(self) -> dict[str, np.ndarray]:
        """Part of the checkpoint."""
        rows = np.flatnonzero(self._used)
        return {
            "used": self._used,
            "next": np.concatenate([*(self._next[row][: self._used[row]] for row in rows), _NONE]),
            "count": np.concatenate([*(self._count[row][: self._used[row]] for row in rows), _NONE]),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], *, max_pairs: int) -> Transitions:
        """What `arrays` gave."""
        transitions = cls(max_pairs=max_pairs, capacity=len(arrays["used"]))
        transitions._used = arrays["used"].copy()
        ends = np.cumsum(arrays["used"])[:-1]
        transitions._next = [part.copy() for part in np.split(arrays["next"], ends)]
        transitions._count = [part.copy() for part in np.split(arrays["count"], ends)]
        transitions.pairs = int(arrays["used"].sum())
        return transitions


_NONE = np.empty(0, dtype=np.int32)


def _not_had(found: _Successors, events: Events) -> _Successors:
    """Without what the user has; events with so many left that they miss anyway are not looked into."""
    width = events.history_NT.shape[1]
    count_N = np.bincount(found.owner_S, minlength=len(events.target_N))
    close_S = count_N[found.owner_S] < CUT + width
    stride = int(max(found.row_S.max(initial=0), events.history_NT.max(initial=0))) + 1
    had = (np.arange(len(events.target_N))[:, None] * stride + events.history_NT).ravel()
    close = found.where(close_S)
    unknown = close.where(~np.isin(close.owner_S * stride + close.row_S, had))
    far = found.where(~close_S)
    return _Successors(*(np.concatenate(pair) for pair in zip(unknown, far, strict=True)))
