"""Recommenders that only count the stream: recently popular, and what followed the user's last item.

Counted by the worker itself from the sequences it reads. Memory is bounded: by a number of items, of which the least
recently clicked goes; by a number of pairs, past which all counts are halved. Shapes: R rows, C candidates, N clicks.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from deploy.scoring.shelf import Shelf
from model.catalogue import Catalogue
from model.counts import TransitionCounts, popular_share
from model.policies import Eligible, Shortlist
from trainer.settings import TrainerSettings

REFRESH_CLICKS = 1_000
REFRESH_SECONDS = 1.0
REBUILT_ITEMS = 10
"""Of a user met for the first time, so many of the last items count: the worker reads everybody at its start."""
POPULAR_ROWS = 4_096
"""Most popular items kept in order; behind a user's exclusions they are what there is to choose from."""


class Counted:
    """What was clicked lately and in which order, and the shelf that this makes; `now` is in monotonic seconds."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._catalogue = Catalogue(max_items=settings.max_items, half_life_clicks=settings.popular_half_life)
        self._transitions = TransitionCounts(max_pairs=settings.transition_pairs, capacity=self._catalogue.capacity)
        self._steps: list[tuple[str | None, str]] = []
        self._shelf: Shelf | None = None
        self._due_at = 0.0
        self._popular_row_P = np.zeros(0, dtype=np.int64)
        self._share_R = np.zeros(1)

    def click(self, before: str | None, item_id: str) -> None:
        """Somebody chose an item, after another where it was not the first."""
        self._steps.append((before, item_id))

    def met(self, items: tuple[str, ...]) -> None:
        """A user came with a history."""
        last = items[-REBUILT_ITEMS - 1 :]
        if len(items) <= REBUILT_ITEMS:
            self.click(None, last[0])
        self._steps += list(pairwise(last))

    def shelf(self, *, now: float) -> Shelf:
        """As of at most a second or a thousand clicks ago: all clicks counted since come in together."""
        if self._shelf is None or (self._steps and (now >= self._due_at or len(self._steps) >= REFRESH_CLICKS)):
            self._count()
            self._shelf = self._made()
            self._due_at = now + REFRESH_SECONDS
        return self._shelf

    def popular(self, eligible: Eligible, *, size: int) -> Shortlist:
        """The most popular of what the user may get; the score is `log(1 + recent clicks)`."""
        assert self._shelf is not None
        row_C = self._best(eligible, size)
        return Shortlist(row_C, self._shelf.popularity_R.double().numpy()[row_C], eligible)

    def followers(self, last_row: int, eligible: Eligible, *, size: int) -> Shortlist:
        """What followed the last item most often, then the most popular; the score is `log(times + popularity)`."""
        found = self._transitions.followers(np.array([last_row]))
        followed_C = _eligible_only(found.row_S.astype(np.int64), eligible)
        row_C = np.union1d(followed_C, self._best(eligible, size))
        times_R = dict(zip(found.row_S.tolist(), found.count_S.tolist(), strict=True))
        times_C = np.array([times_R.get(row, 0.0) for row in row_C.tolist()])
        with np.errstate(divide="ignore"):
            score_C = np.log(times_C + self._share_R[row_C])
        best_C = np.argsort(-score_C, kind="stable")[:size]
        return Shortlist(row_C[best_C], score_C[best_C], eligible)

    def _best(self, eligible: Eligible, size: int) -> np.ndarray:
        if len(eligible.row_N) <= POPULAR_ROWS:  # a few named candidates, or a small catalogue: all of them
            row_C: np.ndarray = np.setdiff1d(eligible.row_N[eligible.row_N < len(self._share_R)], eligible.excluded_X)
            best_C: np.ndarray = row_C[np.argsort(-self._share_R[row_C], kind="stable")][:size]
            return best_C
        return _eligible_only(self._popular_row_P[: size + len(eligible.excluded_X)], eligible)[:size]

    def _count(self) -> None:
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        for item_id in dict.fromkeys(item_id for step in steps for item_id in step if item_id is not None):
            self._catalogue.admit(item_id)
        if self._catalogue.capacity > self._transitions.capacity:
            self._transitions.grow(self._catalogue.capacity)
        self._transitions.forget(self._catalogue.take_fresh_rows())
        target_N = self._catalogue.rows_of(item_id for _, item_id in steps)
        self._transitions.count(self._catalogue.rows_of(before or "" for before, _ in steps), target_N)
        self._catalogue.count_clicks(target_N)

    def _made(self) -> Shelf:
        count_R = self._catalogue.recent_click_counts()
        most = min(POPULAR_ROWS, len(count_R) - 1)
        top_P = 1 + np.argpartition(-count_R[1:], most - 1)[:most] if most else np.zeros(0, dtype=np.int64)
        self._popular_row_P = top_P[np.argsort(-count_R[top_P], kind="stable")]
        self._share_R = popular_share(count_R)
        return Shelf(
            catalogue=self._catalogue,
            live_R=self._catalogue.live_mask(),
            popularity_R=torch.from_numpy(np.log1p(count_R).astype(np.float32)),
        )


def _eligible_only(row_C: np.ndarray, eligible: Eligible) -> np.ndarray:
    """Those that may be served, in their order."""
    if not len(eligible.row_N):
        return row_C[:0]
    place_C = np.minimum(np.searchsorted(eligible.row_N, row_C), len(eligible.row_N) - 1)
    may_C = (eligible.row_N[place_C] == row_C) & ~np.isin(row_C, eligible.excluded_X)
    found_C: np.ndarray = row_C[may_C]
    return found_C
