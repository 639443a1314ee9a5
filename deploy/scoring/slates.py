"""A batch of users -> their slates: one forward pass, one search over the catalogue, one draw for each.

Shapes: B users, T positions, D units, R rows of the item table, N rows that may be served, X rows taken from these,
C candidates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deploy.scoring.shelf import Shelf
from model.catalogue import PADDING
from model.policies import Eligible, Shortlist, Slate, eligible_without, mixture
from model.ranking import top_k
from model.settings import PolicySettings
from stream.events import Cause, Recommendation, RecommendedItem

BY_MODEL = "sasrec"
BY_POPULARITY = "popular"
"""The policy of slates for users of whom the model knows nothing, and before there is a model."""


class Query(NamedTuple):
    """A slate to be made."""

    user_id: str
    request_id: str
    cause: Cause
    items: tuple[str, ...]
    """What the user has had, oldest first."""
    slate_size: int
    candidates: tuple[str, ...] | None = None
    """Only these; everything where absent."""
    exclude: tuple[str, ...] = ()


class Servable(NamedTuple):
    """What may be served at all, of one shelf and one state of withdrawals; `row_N` are the rows of `live_R`."""

    live_R: np.ndarray
    row_N: np.ndarray


class Asked(NamedTuple):
    """A query in rows of the item table."""

    place: int
    """Among the queries of the batch."""
    query: Query
    history_T: np.ndarray
    """Known items, oldest first; empty where the model knows none."""
    taken_X: np.ndarray
    """What this user must not get; may repeat."""
    eligible: Eligible


class Ranking(NamedTuple):
    """Users and items in one space: scores are products."""

    policy: str
    user_BD: Tensor
    item_RD: Tensor


class Slates:
    """Draws slates; keeps nothing but what may be served from the shelf at hand."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._policy = mixture(temperature=settings.temperature, exploration_slots=settings.exploration_slots)
        self._of: tuple[Shelf, frozenset[str]] | None = None
        self._servable = Servable(np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64))

    def draw(
        self, shelf: Shelf, queries: Sequence[Query], *, withdrawn: frozenset[str], now_ms: int
    ) -> list[Recommendation]:
        """One slate for each query, in their order, all from `shelf`."""
        servable = self._servable_of(shelf, withdrawn)
        asked = _ask(shelf, queries, servable)
        slates = {}
        for ranking, members in _rankings(shelf, asked):
            shortlists = _shortlists(ranking, members, servable, size=self._settings.candidates)
            for one, shortlist in zip(members, shortlists, strict=True):
                slates[one.place] = self._slate(shelf, one, shortlist, policy=ranking.policy, now_ms=now_ms)
        return [slates[place] for place in range(len(queries))]

    def _servable_of(self, shelf: Shelf, withdrawn: frozenset[str]) -> Servable:
        if self._of is None or self._of[0] is not shelf or self._of[1] is not withdrawn:
            live_R = shelf.live_R.copy()
            live_R[shelf.catalogue.rows_of(withdrawn)] = False
            live_R[PADDING] = False
            self._of = (shelf, withdrawn)
            self._servable = Servable(live_R, np.flatnonzero(live_R))
        return self._servable

    def _slate(self, shelf: Shelf, asked: Asked, shortlist: Shortlist, *, policy: str, now_ms: int) -> Recommendation:
        query, seed = asked.query, seed_of(asked.query.request_id)
        drawn = self._policy.draw(shortlist, slate_size=query.slate_size, rng=np.random.default_rng(seed))
        return Recommendation(
            request_id=query.request_id,
            user_id=query.user_id,
            policy=policy,
            generated_at_ms=now_ms,
            items=_items(shelf, drawn),
            model_version=shelf.version,
            trained_through_ms=shelf.trained_through_ms,
            trained_through_arrival_ms=shelf.trained_through_arrival_ms,
            temperature=self._settings.temperature,
            exploration_slots=self._settings.exploration_slots,
            eligible_count=asked.eligible.count,
            candidate_count=int((shortlist.row_C != PADDING).sum()),
            history_length=len(query.items),
            seed=seed,
            cause=query.cause,
        )


def seed_of(request_id: str) -> int:
    """The same request always gets the same draw; 48 bits, which every JSON reader keeps exactly."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=6).digest(), "big")


def _ask(shelf: Shelf, queries: Sequence[Query], servable: Servable) -> list[Asked]:
    """Looks up the rows of all histories at once."""
    had_P = shelf.catalogue.rows_of(chain.from_iterable(query.items for query in queries))
    ends = np.cumsum([len(query.items) for query in queries])[:-1]
    return [
        Asked(place, query, had_T[had_T != PADDING], *_may_get(shelf, query, had_T, servable))
        for place, (query, had_T) in enumerate(zip(queries, np.split(had_P, ends), strict=True))
    ]


def _may_get(shelf: Shelf, query: Query, had_T: np.ndarray, servable: Servable) -> tuple[np.ndarray, Eligible]:
    """What the user must not get, and what is left."""
    taken_X = np.append(had_T, shelf.catalogue.rows_of(query.exclude)) if query.exclude else had_T
    if query.candidates is None:
        return taken_X, eligible_without(taken_X, row_N=servable.row_N, live_R=servable.live_R)
    named_N = np.intersect1d(servable.row_N, shelf.catalogue.rows_of(query.candidates))
    return taken_X, Eligible(row_N=np.setdiff1d(named_N, taken_X), excluded_X=taken_X[:0])


def _rankings(shelf: Shelf, asked: Sequence[Asked]) -> list[tuple[Ranking, list[Asked]]]:
    """Users whom the model knows are ranked by it, the others by popularity."""
    known = [one for one in asked if shelf.network is not None and len(one.history_T)]
    unknown = [one for one in asked if shelf.network is None or not len(one.history_T)]
    rankings = []
    if known:
        rankings.append((_by_model(shelf, known), known))
    if unknown:
        rankings.append((_by_popularity(shelf, len(unknown)), unknown))
    return rankings


def _by_model(shelf: Shelf, asked: Sequence[Asked]) -> Ranking:
    """Histories are padded on the left, to the longest of the batch and no more than the network looks at."""
    assert shelf.network is not None
    assert shelf.item_RD is not None
    longest = min(max(len(one.history_T) for one in asked), shelf.network.settings.max_length)
    row_BT = np.full((len(asked), longest), PADDING, dtype=np.int64)
    for row_T, one in zip(row_BT, asked, strict=True):
        newest_T = one.history_T[-longest:]
        row_T[longest - len(newest_T) :] = newest_T
    return Ranking(BY_MODEL, shelf.network.encode_last(torch.from_numpy(row_BT)), shelf.item_RD)


def _by_popularity(shelf: Shelf, users: int) -> Ranking:
    return Ranking(BY_POPULARITY, torch.ones(users, 1), shelf.popularity_R[:, None])


def _shortlists(ranking: Ranking, asked: Sequence[Asked], servable: Servable, *, size: int) -> list[Shortlist]:
    """The `size` best items that each user may get; among the candidates where the request names some."""
    searched = [index for index, one in enumerate(asked) if one.query.candidates is None]
    found = iter(_search(ranking, asked, searched, servable, size=size))
    return [
        next(found)
        if one.query.candidates is None
        else _among(ranking.user_BD[index], ranking.item_RD, one.eligible, size=size)
        for index, one in enumerate(asked)
    ]


def _search(
    ranking: Ranking, asked: Sequence[Asked], searched: Sequence[int], servable: Servable, *, size: int
) -> list[Shortlist]:
    if not searched:
        return []
    best = top_k(
        ranking.user_BD[list(searched)],
        ranking.item_RD,
        k=size,
        excluded_BE=_padded([asked[index].taken_X for index in searched]),
        live_R=torch.from_numpy(servable.live_R),
    )
    ranked = zip(best.row_BK.numpy(), best.score_BK.double().numpy(), searched, strict=True)
    return [Shortlist(row_C, score_C, asked[index].eligible) for row_C, score_C, index in ranked]


def _among(user_D: Tensor, item_RD: Tensor, eligible: Eligible, *, size: int) -> Shortlist:
    score_N = item_RD[torch.from_numpy(eligible.row_N)] @ user_D
    best = score_N.topk(min(size, eligible.count))
    return Shortlist(eligible.row_N[best.indices.numpy()], best.values.double().numpy(), eligible)


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    width = max((len(row_X) for row_X in rows), default=0)
    padded_BE = np.full((len(rows), width), PADDING, dtype=np.int64)
    for padded_E, row_X in zip(padded_BE, rows, strict=True):
        padded_E[: len(row_X)] = row_X
    return torch.from_numpy(padded_BE)


def _items(shelf: Shelf, slate: Slate) -> tuple[RecommendedItem, ...]:
    slots = zip(
        slate.row_K.tolist(),
        slate.score_K.tolist(),
        slate.explored_K.tolist(),
        slate.propensity_K.tolist(),
        strict=True,
    )
    return tuple(
        RecommendedItem(
            item_id=shelf.catalogue.item_of(row),
            position=position,
            score=None if math.isnan(score) else score,
            source="explore" if explored else "exploit",
            propensity=propensity,
            propensity_kind="exact",
        )
        for position, (row, score, explored, propensity) in enumerate(slots)
    )
