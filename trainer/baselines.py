"""What the network has to beat, on the same events: the recently popular, and what followed the last item before.

Both predict the items that the user does not have yet, and a rank counts every tie against the ranker. Shapes: N
events, T items that the user has (rows, PADDING where there are fewer), R rows of the catalogue, S successors, M most
popular items, K best ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from model.catalogue import PADDING
from model.counts import Successors, TransitionCounts, popular_share

LARGEST_TABLE = 1 << 22
"""Pairs of a user and an item of which a table says whether the user has it; of more a sort does."""


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
        return popular_share(self.count_R)

    def ranks(self, events: Events) -> Int[np.ndarray, " N"]:
        """0 for the most popular of what the user does not have. Nothing is sorted: the cost follows the catalogue."""
        target_count_N = self.count_R[events.target_N]
        level_L, which_N = np.unique(target_count_N, return_inverse=True)
        reached_R = np.searchsorted(level_L, self.count_R[PADDING + 1 :], side="right")
        at_least_L = np.bincount(reached_R, minlength=len(level_L) + 1)[::-1].cumsum()[::-1][1:]
        had_NT = events.distinct()
        had_above_N = ((had_NT != PADDING) & (self.count_R[had_NT] >= target_count_N[:, None])).sum(axis=1)
        rank_N: np.ndarray = at_least_L[which_N] - 1 - had_above_N
        return rank_N

    def best(self, events: Events, *, k: int) -> Int[np.ndarray, "N K"]:
        """The k most popular of what each user does not have and somebody clicked; PADDING at the end."""
        width = events.history_NT.shape[1]
        row_M = self._most_popular(k + width)
        had_NM = (events.history_NT[:, :, None] == row_M).any(axis=1)
        place_NK = np.argsort(had_NM, axis=1, kind="stable")[:, :k]
        return _filled(np.where(np.take_along_axis(had_NM, place_NK, axis=1), PADDING, row_M[place_NK]), k=k)

    def _most_popular(self, count: int) -> Int[np.ndarray, " M"]:
        # Only what was clicked is partitioned: among many equal counts, such as 0, that is slow.
        row_M = PADDING + 1 + np.flatnonzero(self.count_R[PADDING + 1 :])
        surplus = len(row_M) - count
        row_M = row_M[np.argpartition(self.count_R[row_M], surplus)[surplus:]] if surplus > 0 else row_M
        popular_M: np.ndarray = row_M[np.lexsort((row_M, -self.count_R[row_M]))]
        return popular_M


class Transitions(TransitionCounts):
    """Ranks by how often an item followed another; equal counts, and what never followed, by popularity."""

    def learn(self, events: Events) -> None:
        """Counts the step from the last item to the target."""
        self.count(events.last_N, events.target_N)

    def ranks(self, events: Events, *, found: Successors, popular: Popular) -> Int[np.ndarray, " N"]:
        """0 for the likeliest follower among what the user does not have; `found` is of `new_followers`."""
        share_R = popular.share_R()
        is_target_S = found.row_S == events.target_N[found.owner_S]
        target_count_N = np.zeros(len(events.target_N))
        target_count_N[found.owner_S[is_target_S]] = found.count_S[is_target_S]
        score_N = target_count_N + share_R[events.target_N]
        ahead = found.where(~is_target_S & (found.count_S + share_R[found.row_S] >= score_N[found.owner_S]))
        rank_N = np.bincount(ahead.owner_S, minlength=len(score_N))
        more_popular = ahead.where(share_R[ahead.row_S] >= share_R[events.target_N][ahead.owner_S])
        counted_N = np.bincount(more_popular.owner_S, minlength=len(score_N))
        return np.where(target_count_N == 0, rank_N + popular.ranks(events) - counted_N, rank_N)

    def best(self, *, found: Successors, popular: Popular, else_NK: Int[np.ndarray, "N K"]) -> Int[np.ndarray, "N K"]:
        """The likeliest followers among what each user does not have, then the most popular; PADDING at the end.

        `found` is of `new_followers`, `else_NK` what is popular's `best` of these users.
        """
        share_R = popular.share_R()
        order_S = np.lexsort((-found.count_S - share_R[found.row_S], found.owner_S))
        users, k = else_NK.shape
        count_N = np.bincount(found.owner_S, minlength=users)
        followers = np.split(found.row_S[order_S], np.cumsum(count_N))[:-1]
        best_NK = np.full((users, k), PADDING, dtype=np.int64)
        for best_K, followed, else_K in zip(best_NK, followers, else_NK, strict=True):
            rows = [row for row in dict.fromkeys((*followed[:k].tolist(), *else_K.tolist())) if row != PADDING][:k]
            best_K[: len(rows)] = rows
        return best_NK

    def new_followers(self, events: Events) -> Successors:
        """What followed the last item and the user does not have."""
        found = self.followers(events.last_N)
        stride = int(max(found.row_S.max(initial=0), events.history_NT.max(initial=0))) + 1
        had = (np.arange(len(events.target_N))[:, None] * stride + events.history_NT).ravel()
        is_small = len(events.target_N) * stride <= LARGEST_TABLE
        return found.where(~np.isin(found.owner_S * stride + found.row_S, had, kind="table" if is_small else "sort"))


def _filled(row_NK: Int[np.ndarray, "N J"], *, k: int) -> Int[np.ndarray, "N K"]:
    return np.pad(row_NK, ((0, 0), (0, k - row_NK.shape[1])), constant_values=PADDING)
