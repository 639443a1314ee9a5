"""Predict, then learn: how well the next click was foreseen, by the network and by two baselines on the same events.

Every click is ranked over the whole catalogue before anything learns from it, among what the user does not have: that
is what the policy serves from. A click on something the user has is therefore no question and is left out for every
ranker alike; an item that the catalogue does not hold is a miss for every ranker alike. Shapes: N events, W events of
the window, K rankers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from model.catalogue import PADDING
from trainer.baselines import CUT, Events, Popular, Transitions
from trainer.settings import TrainerSettings

Ranker = Literal["sasrec", "popular", "transitions"]
Kind = Literal["all", "organic", "served"]

RANKERS: tuple[Ranker, ...] = get_args(Ranker)
MISS = 2**31 - 1


class Judged(NamedTuple):
    """Clicks and the rank that each ranker gave the item, 0 for the best."""

    rank_NK: Int[np.ndarray, "N K"]
    served_N: Bool[np.ndarray, " N"]


class Score(NamedTuple):
    """How well one ranker foresaw some clicks."""

    events: int
    hr10: float
    ndcg10: float


def hits(rank: Int[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """1 where the item stood among the first ten."""
    hit: np.ndarray = (rank < CUT).astype(np.float64)
    return hit


def gains(rank: Int[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """`1 / log2(rank + 2)` among the first ten, else 0: NDCG of the one item that was clicked."""
    return np.where(rank < CUT, 1.0 / np.log2(np.minimum(rank, CUT) + 2.0), 0.0)


def unanswered(history_NT: Int[np.ndarray, "N T"], target_N: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Clicks that are no question: the user has the item already."""
    had_N: np.ndarray = ((history_NT == target_N[:, None]) & (target_N[:, None] != PADDING)).any(axis=1)
    return had_N


class Prequential:
    """The baselines, the moving window and the sums since the beginning; all of it is part of the checkpoint."""

    def __init__(self, settings: TrainerSettings, *, capacity: int) -> None:
        self._settings = settings
        self.transitions = Transitions(max_pairs=settings.transition_pairs, capacity=capacity)
        self._window = Judged(np.empty((0, len(RANKERS)), dtype=np.int64), np.empty(0, dtype=np.bool_))
        self._totals = np.zeros((2, 3, len(RANKERS)))
        """[organic or served, events or hits or gains, ranker]."""

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity`."""
        self.transitions.grow(capacity)

    def forget(self, rows: Int[np.ndarray, " F"]) -> None:
        """Rows that were given to other items."""
        self.transitions.forget(rows)

    def judge(
        self,
        events: Events,
        *,
        sasrec_rank_N: Int[np.ndarray, " N"],
        served_N: Bool[np.ndarray, " N"],
        popular: Popular,
    ) -> Judged:
        """Ranks by the baselines beside the network's; changes what is measured, not what the baselines know."""
        question_N = ~unanswered(events.history_NT, events.target_N)
        rank_NK = np.full((len(question_N), len(RANKERS)), MISS, dtype=np.int64)
        known_N = question_N & (events.target_N != PADDING)
        if known_N.any():
            asked = Events(events.history_NT[known_N], events.target_N[known_N])
            rank_NK[known_N, RANKERS.index("sasrec")] = sasrec_rank_N[known_N]
            rank_NK[known_N, RANKERS.index("popular")] = popular.ranks(asked)
            rank_NK[known_N, RANKERS.index("transitions")] = self.transitions.ranks(asked, popular=popular)
        judged = Judged(rank_NK[question_N], served_N[question_N])
        self._add(judged)
        return judged

    def learn(self, events: Events) -> None:
        """The item-to-item baseline learns what was asked, once its items have rows; the catalogue counts clicks."""
        self.transitions.learn(events)

    def _add(self, judged: Judged) -> None:
        length = self._settings.metric_window
        self._window = Judged(
            *(np.concatenate((old, new))[-length:] for old, new in zip(self._window, judged, strict=True))
        )
        for served in (0, 1):
            rank_NK = judged.rank_NK[judged.served_N == served]
            self._totals[served] += np.stack((np.ones(rank_NK.shape), hits(rank_NK), gains(rank_NK))).sum(axis=1)

    def moving(self, ranker: Ranker, kind: Kind = "all") -> Score:
        """Over the last `metric_window` clicks that were questions."""
        rank_N = self._window.rank_NK[:, RANKERS.index(ranker)]
        if kind != "all":
            rank_N = rank_N[self._window.served_N == (kind == "served")]
        events = max(1, len(rank_N))
        return Score(len(rank_N), float(hits(rank_N).sum()) / events, float(gains(rank_N).sum()) / events)

    def cumulative(self, ranker: Ranker, kind: Kind = "all") -> Score:
        """Since the lineage began."""
        parts = {"all": [0, 1], "organic": [0], "served": [1]}[kind]
        events, hit, gain = self._totals[parts, :, RANKERS.index(ranker)].sum(axis=0).tolist()
        return Score(int(events), hit / max(1.0, events), gain / max(1.0, events))

    def arrays(self) -> dict[str, np.ndarray]:
        """Part of the checkpoint."""
        return {
            "window_rank": self._window.rank_NK,
            "window_served": self._window.served_N,
            "totals": self._totals,
        } | {f"transitions_{name}": array for name, array in self.transitions.arrays().items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Becomes what `arrays` gave."""
        self._window = Judged(arrays["window_rank"].copy(), arrays["window_served"].astype(np.bool_))
        self._totals = arrays["totals"].copy()
        self.transitions = Transitions.from_arrays(
            {name: arrays[f"transitions_{name}"] for name in ("used", "next", "count")},
            max_pairs=self._settings.transition_pairs,
        )
