"""What the network has to beat, on the same events: the recently popular, and what followed the last item before.

Both predict the items that the user does not have yet, and a rank counts every tie against the ranker. Shapes: N
events, T items that the user has (rows, PADDING where there are fewer), R rows of the catalogue, S successors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from model.catalogue import PADDING
from model.counts import Successors, TransitionCounts, popular_share

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
        return popular_share(self.count_R)

    def ranks(self, events: Events, *, up_to: int = CUT) -> Int[np.ndarray, " N"]:
        """0 for the most popular of what the user does not have; exact below `up_to`."""
        needed = min(up_to + events.history_NT.shape[1] + 1, len(self.count_R) - 1)
        top = np.sort(np.partition(self.count_R[PADDING + 1 :], -needed)[-needed:])
        target_count_N = self.count_R[events.target_N]
        had_NT = events.distinct()
        had_above_N = ((had_NT != PADDING) & (self.count_R[had_NT] >= target_count_N[:, None])).sum(axis=1)
        rank_N: np.ndarray = needed - np.searchsorted(top, target_count_N, side="left") - 1 - had_above_N
        return rank_N


class Transitions(TransitionCounts):
    """Ranks by how often an item followed another; equal counts, and what never followed, by popularity."""

    def learn(self, events: Events) -> None:
        """Counts the step from the last item to the target."""
        self.count(events.last_N, events.target_N)

    def ranks(self, events: Events, *, popular: Popular) -> Int[np.ndarray, " N"]:
        """0 for the likeliest follower among what the user does not have; exact below `CUT`."""
        share_R = popular.share_R()
        found = self.followers(events.last_N)
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


def _not_had(found: Successors, events: Events) -> Successors:
    """Without what the user has; events with so many left that they miss anyway are not looked into."""
    width = events.history_NT.shape[1]
    count_N = np.bincount(found.owner_S, minlength=len(events.target_N))
    close_S = count_N[found.owner_S] < CUT + width
    stride = int(max(found.row_S.max(initial=0), events.history_NT.max(initial=0))) + 1
    had = (np.arange(len(events.target_N))[:, None] * stride + events.history_NT).ravel()
    close = found.where(close_S)
    unknown = close.where(~np.isin(close.owner_S * stride + close.row_S, had))
    far = found.where(~close_S)
    return Successors(*(np.concatenate(pair) for pair in zip(unknown, far, strict=True)))
