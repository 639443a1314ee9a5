"""Predict, then learn: how well the next click was foreseen, by the network and by two baselines on the same events.

Every click is ranked over the whole catalogue before anything learns from it, among what the user does not have: that
is what the policy serves from. A click on something the user has is therefore no question and is left out for every
ranker alike; an item that the catalogue does not hold is a miss for every ranker alike. Of a large micro-batch only
some clicks are asked about; each then stands for several (`weight`).

The window is one of event time: what lies `metric_window_seconds` before the newest click is out, and of a busier
stream only the newest `metric_window` clicks are in. Shapes: N events, W events of the window, K rankers, R rows, J
items of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from model.catalogue import PADDING
from trainer.baselines import Events, Popular, Transitions
from trainer.confidence import Estimate, Spread, of_mean, of_share, spreads
from trainer.settings import TrainerSettings

Ranker = Literal["sasrec", "popular", "transitions"]
Metric = Literal["hr10", "ndcg10", "mrr"]
Origin = Literal["organic", "served"]
ItemAge = Literal["item_new", "item_hour", "item_day", "item_week", "item_older"]
UserLength = Literal["user_none", "user_few", "user_some", "user_many"]
Kind = Literal["all"] | Origin | ItemAge | UserLength

RANKERS: tuple[Ranker, ...] = get_args(Ranker)
METRICS: tuple[Metric, ...] = get_args(Metric)
ORIGINS: tuple[Origin, ...] = get_args(Origin)
ITEM_AGES: tuple[ItemAge, ...] = get_args(ItemAge)
"""Since the first click on it: none yet, within the hour, the day, the week, longer."""
USER_LENGTHS: tuple[UserLength, ...] = get_args(UserLength)
"""Items that the user has: none, up to 4, up to 19, more."""
KINDS: tuple[Kind, ...] = ("all", *ORIGINS, *ITEM_AGES, *USER_LENGTHS)

CUT = 10
"""Items of a list."""
MISS = 2**31 - 1
MINUTE_MS = 60_000
_AGE_MINUTES = np.array([60, 24 * 60, 7 * 24 * 60])
_LENGTHS = np.array([1, 5, 20])
_LONG_AGO = 1
"""Minutes since 1970: born before anything that is known."""


class Asked(NamedTuple):
    """Clicks before anything learns from them."""

    events: Events
    served_N: Bool[np.ndarray, " N"]
    user_N: Int[np.ndarray, " N"]
    """A number for each user; two who share one count as one."""
    at_ms_N: Int[np.ndarray, " N"]
    weight: float
    """How many clicks each of them stands for."""


class Guess(NamedTuple):
    """What a ranker said to some clicks."""

    rank_N: Int[np.ndarray, " N"]
    """Of the item that came, 0 for the best."""
    best_NJ: Int[np.ndarray, "N J"]
    """The list that it would have served, best first, PADDING at the end."""


class Judged(NamedTuple):
    """Clicks and the rank that each ranker gave the item, 0 for the best."""

    rank_NK: Int[np.ndarray, "N K"]
    served_N: Bool[np.ndarray, " N"]
    at_ms_N: Int[np.ndarray, " N"]
    user_N: Int[np.ndarray, " N"]
    age_N: Int[np.ndarray, " N"]
    """Index into ITEM_AGES."""
    length_N: Int[np.ndarray, " N"]
    """Index into USER_LENGTHS."""
    weight_N: Float[np.ndarray, " N"]

    def where(self, choice: np.ndarray | slice) -> Judged:
        """Some of them, or all in another order."""
        return Judged(*(array[choice] for array in self))

    def then(self, more: Judged) -> Judged:
        """These and what came after them."""
        return Judged(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))

    def of_kind(self, kind: Kind) -> Bool[np.ndarray, " N"]:
        """Which of them belong there."""
        if kind == "all":
            return np.ones(len(self.served_N), dtype=np.bool_)
        if kind in ORIGINS:
            is_served_N: np.ndarray = self.served_N == (kind == "served")
            return is_served_N
        places: tuple[str, ...] = ITEM_AGES if kind in ITEM_AGES else USER_LENGTHS
        belongs_N: np.ndarray = (self.age_N if kind in ITEM_AGES else self.length_N) == places.index(kind)
        return belongs_N


class Score(NamedTuple):
    """How well one ranker foresaw some clicks; the means are those of all clicks that these stand for."""

    events: int
    hr10: float
    ndcg10: float
    mrr: float


class Figure(NamedTuple):
    """One metric of one ranker over the clicks of one kind in the window."""

    metric: Metric
    ranker: Ranker
    kind: Kind
    estimate: Estimate


class Lead(NamedTuple):
    """By how much the network's NDCG@10 lies above a baseline's on the same clicks."""

    over: Ranker
    kind: Kind
    estimate: Estimate


def hits(rank: Int[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """1 where the item stood among the first ten."""
    hit: np.ndarray = (rank < CUT).astype(np.float64)
    return hit


def gains(rank: Int[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """`1 / log2(rank + 2)` among the first ten, else 0: NDCG of the one item that was clicked."""
    return np.where(rank < CUT, 1.0 / np.log2(np.minimum(rank, CUT) + 2.0), 0.0)


def reciprocals(rank: Int[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """`1 / (rank + 1)` wherever in the catalogue the item stood, 0 where it was missed."""
    return np.where(rank == MISS, 0.0, 1.0 / (rank + 1.0))


VALUES: dict[Metric, Callable[[np.ndarray], np.ndarray]] = {"hr10": hits, "ndcg10": gains, "mrr": reciprocals}


def unanswered(history_NT: Int[np.ndarray, "N T"], target_N: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Clicks that are no question: the user has the item already."""
    had_N: np.ndarray = ((history_NT == target_N[:, None]) & (target_N[:, None] != PADDING)).any(axis=1)
    return had_N


class Prequential:
    """The baselines, the moving window and the sums since the beginning; all of it is part of the checkpoint."""

    def __init__(self, settings: TrainerSettings, *, capacity: int) -> None:
        self._settings = settings
        self.transitions = Transitions(max_pairs=settings.transition_pairs, capacity=capacity)
        self._window = _nothing_judged()
        self._newest_ms = 0
        self._totals = np.zeros((len(ORIGINS), 1 + len(METRICS), len(RANKERS)))
        """[organic or served, clicks stood for or sum of a metric, ranker]."""
        self._born_R = np.zeros(capacity, dtype=np.int32)
        """Minute of the first click on each row's item; 0 before it."""
        self._shown_KR = np.zeros((len(RANKERS), capacity), dtype=np.int32)
        """Minute in which each ranker last had the row in a list."""

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity`."""
        new = capacity - len(self._born_R)
        self.transitions.grow(capacity)
        self._born_R = np.pad(self._born_R, (0, new))
        self._shown_KR = np.pad(self._shown_KR, ((0, 0), (0, new)))

    def forget(self, rows: Int[np.ndarray, " F"]) -> None:
        """Rows that were given to other items."""
        self.transitions.forget(rows)
        self._born_R[rows] = 0
        self._shown_KR[:, rows] = 0

    def judge(self, asked: Asked, guess: Guess, *, popular: Popular) -> Judged:
        """Ranks by the baselines beside the network's; changes what is measured, not what the baselines know."""
        events = asked.events
        self._newest_ms = max(self._newest_ms, int(asked.at_ms_N.max(initial=0)))
        question_N = ~unanswered(events.history_NT, events.target_N)
        known_N = question_N & (events.target_N != PADDING)
        guesses = (guess, *self._baselines(events, popular))
        rank_NK = np.stack([np.where(known_N, each.rank_N, MISS) for each in guesses], axis=1)
        self._show([each.best_NJ[question_N] for each in guesses])
        judged = Judged(
            rank_NK=rank_NK,
            served_N=asked.served_N,
            at_ms_N=asked.at_ms_N,
            user_N=asked.user_N,
            age_N=self._age(events.target_N, asked.at_ms_N),
            length_N=np.searchsorted(_LENGTHS, (events.history_NT != PADDING).sum(axis=1), side="right"),
            weight_N=np.full(len(rank_NK), asked.weight),
        ).where(question_N)
        self._add(judged)
        return judged

    def _baselines(self, events: Events, popular: Popular) -> tuple[Guess, Guess]:
        """In the order of RANKERS."""
        found, favourites = self.transitions.new_followers(events), popular.best(events, k=CUT)
        return (
            Guess(popular.ranks(events), favourites),
            Guess(
                self.transitions.ranks(events, found=found, popular=popular),
                self.transitions.best(found=found, popular=popular, else_NK=favourites),
            ),
        )

    def _show(self, lists: list[Int[np.ndarray, "N J"]]) -> None:
        for shown_R, best_NJ in zip(self._shown_KR, lists, strict=True):
            shown_R[best_NJ[best_NJ != PADDING]] = self._newest_ms // MINUTE_MS

    def _age(self, target_N: Int[np.ndarray, " N"], at_ms_N: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        born_N = self._born_R[target_N]
        age_N: np.ndarray = 1 + np.searchsorted(_AGE_MINUTES, at_ms_N // MINUTE_MS - born_N, side="right")
        return np.where((target_N == PADDING) | (born_N == 0), 0, age_N)

    def learn(self, events: Events, *, at_ms_N: Int[np.ndarray, " N"]) -> None:
        """The item-to-item baseline learns what was asked, once its items have rows; the catalogue counts clicks."""
        self.transitions.learn(events)
        is_first_N = (events.target_N != PADDING) & (self._born_R[events.target_N] == 0)
        # Written from the last to the first: of several clicks the first one stays.
        self._born_R[events.target_N[is_first_N][::-1]] = at_ms_N[is_first_N][::-1] // MINUTE_MS

    def _add(self, judged: Judged) -> None:
        both = self._window.then(judged)
        oldest_ms = self._newest_ms - round(1_000 * self._settings.metric_window_seconds)
        is_recent_N = both.at_ms_N > oldest_ms
        recent = both if is_recent_N.all() else both.where(is_recent_N)
        self._window = recent.where(slice(-self._settings.metric_window, None))
        weight_N1 = judged.weight_N[:, None]
        one_NK = np.ones(judged.rank_NK.shape)
        parts = [weight_N1 * value_NK for value_NK in (one_NK, *(value(judged.rank_NK) for value in VALUES.values()))]
        for served in (0, 1):
            self._totals[served] += [part[judged.served_N == served].sum(axis=0) for part in parts]

    @property
    def window(self) -> Judged:
        """The clicks that the moving figures are taken over."""
        return self._window

    def moving(self, ranker: Ranker, kind: Kind = "all") -> Score:
        """Over the clicks of the window."""
        judged = self._window.where(self._window.of_kind(kind))
        rank_N, weight_N = judged.rank_NK[:, RANKERS.index(ranker)], judged.weight_N
        total = max(float(weight_N.sum()), 1.0)
        return Score(len(rank_N), *(float((weight_N * VALUES[metric](rank_N)).sum()) / total for metric in METRICS))

    def cumulative(self, ranker: Ranker, kind: Literal["all"] | Origin = "all") -> Score:
        """Since the lineage began; `events` are those that were stood for."""
        parts = {"all": [0, 1], "organic": [0], "served": [1]}[kind]
        events, *sums = self._totals[parts, :, RANKERS.index(ranker)].sum(axis=0).tolist()
        return Score(round(events), *(total / max(1.0, events) for total in sums))

    def figures(self) -> Iterator[Figure]:
        """Every metric of every ranker for every kind of clicks that the window has, with confidence."""
        for kind, judged in self._kinds():
            value_NM = np.concatenate([VALUES[metric](judged.rank_NK) for metric in METRICS], axis=1)
            found = spreads(value_NM, judged.weight_N, judged.user_N)
            for (metric, ranker), one in zip(product(METRICS, RANKERS), found, strict=True):
                yield Figure(metric, ranker, kind, _estimate(metric, one))

    def leads(self) -> Iterator[Lead]:
        """Of the network over each baseline, click by click, for every kind of clicks that the window has."""
        for kind, judged in self._kinds():
            gain_NK = gains(judged.rank_NK)
            found = spreads(gain_NK[:, :1] - gain_NK[:, 1:], judged.weight_N, judged.user_N)
            for ranker, one in zip(RANKERS[1:], found, strict=True):
                yield Lead(ranker, kind, of_mean(one, low=-1.0, high=1.0))

    def asked(self, kind: Kind = "all") -> tuple[int, float]:
        """Clicks of the window that were asked about, and how many they stand for."""
        weight_N = self._window.weight_N[self._window.of_kind(kind)]
        return len(weight_N), float(weight_N.sum())

    def coverage(self, ranker: Ranker, *, items: int) -> float:
        """Share of so many items that stood in one of its lists within the window's time."""
        since = (self._newest_ms - round(1_000 * self._settings.metric_window_seconds)) // MINUTE_MS
        shown = np.count_nonzero(self._shown_KR[RANKERS.index(ranker)] >= max(1, since))
        return shown / max(1, items)

    def _kinds(self) -> Iterator[tuple[Kind, Judged]]:
        by_user = self._window.where(np.argsort(self._window.user_N, kind="stable"))
        for kind in KINDS:
            belongs_W = by_user.of_kind(kind)
            if belongs_W.any():
                yield kind, by_user.where(belongs_W)

    def arrays(self) -> dict[str, np.ndarray]:
        """Part of the checkpoint."""
        window = {name: getattr(self._window, field) for name, field in _WINDOW.items()}
        own = {"totals": self._totals, "born": self._born_R, "shown": self._shown_KR}
        newest = {"newest": np.array([self._newest_ms])}
        transitions = {f"transitions_{name}": array for name, array in self.transitions.arrays().items()}
        return window | own | newest | transitions

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Becomes what `arrays` gave. Of a checkpoint from before the window was one of time, the window stays out."""
        self.transitions = Transitions.from_arrays(
            {
                name.removeprefix("transitions_"): array
                for name, array in arrays.items()
                if name.startswith("transitions_")
            },
            max_pairs=self._settings.transition_pairs,
        )
        totals = arrays["totals"]
        self._totals[:, : totals.shape[1]] = totals
        if "newest" not in arrays:
            self._born_R[:] = _LONG_AGO
            return
        self._window = Judged(**{field: arrays[name].copy() for name, field in _WINDOW.items()})
        self._born_R, self._shown_KR = arrays["born"].copy(), arrays["shown"].copy()
        self._newest_ms = int(arrays["newest"][0])


_WINDOW = {f"window_{field.partition('_')[0]}": field for field in Judged._fields}
"""Names in a checkpoint."""


def _nothing_judged() -> Judged:
    none_N = np.empty(0, dtype=np.int64)
    return Judged(
        rank_NK=np.empty((0, len(RANKERS)), dtype=np.int64),
        served_N=np.empty(0, dtype=np.bool_),
        at_ms_N=none_N,
        user_N=none_N,
        age_N=none_N,
        length_N=none_N,
        weight_N=np.empty(0),
    )


def _estimate(metric: Metric, found: Spread) -> Estimate:
    return of_share(found) if metric == "hr10" else of_mean(found, low=0.0, high=1.0)
