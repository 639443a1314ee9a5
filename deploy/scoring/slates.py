"""A batch of users -> their slates: one forward pass, one search over the catalogue, one draw for all.

Where several recommenders share the surface, each draws a slate for every user, and the user's own is served. The
others say with which chance they would have shown its items: what the balance heuristic needs (docs/propensities.md
section 4).

Shapes: B users, T positions, D units, R rows of the item table, X rows taken from what may be served, C candidates, K
slots, L items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from deploy.scoring.arms import Arm, Arms
from deploy.scoring.counted import Counted
from deploy.scoring.diversity import capped
from deploy.scoring.indexing import EXACT, Indexing, Search
from deploy.scoring.shelf import Shelf
from deploy.scoring.space import Space
from model.catalogue import PADDING
from model.index import Index
from model.noise import Seeded
from model.policies import Drawn, Eligible, Shortlist, eligible_without, padded_rows, stacked
from model.settings import PolicySettings
from stream.events import Cause, Recommendation, RecommendedItem, Rival

BY_POPULARITY = "popular"
"""The policy of slates for users of whom the model knows nothing, and before there is a model."""
NOTHING: Mapping[str, str] = {}


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
    sequence_position: int | None = None
    """Clicks ever folded into `items`."""
    is_fresh: bool | None = None
    """Whether the click that the request waited for came; None where it waited for none."""


class Stock(NamedTuple):
    """What slates are made from, at one moment."""

    shelf: Shelf
    withdrawn: frozenset[str] = frozenset()
    available: frozenset[str] = frozenset()
    """Described on `items`: what of it no shelf has a row for can still be explored."""
    categories: Mapping[str, str] = NOTHING
    """Of items, as `items` says."""
    counted: Counted | None = None
    """For arms that only count."""
    now_ms: int = 0


class Asked(NamedTuple):
    """A query in the rows of a space."""

    place: int
    """Among the queries of the batch."""
    query: Query
    history_T: np.ndarray
    """Items with a row in the table, oldest first; empty where the model knows none."""
    taken_X: np.ndarray
    """What this user must not get; may repeat."""
    eligible: Eligible


class Ranking(NamedTuple):
    """What users are ranked by: the products of both."""

    user_BD: Tensor
    item_RD: Tensor
    by: Index | None
    """Through which the table is searched; None where all of it is scored."""


class Group(NamedTuple):
    """Users of one arm who were drawn together."""

    space: Space
    policy: str
    asked: Sequence[Asked]
    candidates_B: np.ndarray
    seeds: Sequence[int]
    drawn: Drawn

    def propensity_of(self, items: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """For each user the chance of these items, 0 for those that this arm cannot show."""
        row_BL = padded_rows([self.space.rows_of(one) for one in items])
        return [p_L[: len(one)] for p_L, one in zip(self.drawn.propensity_of(row_BL), items, strict=True)]


class Slates:
    """Draws slates; keeps nothing but what may be served from the shelves at hand."""

    def __init__(self, settings: PolicySettings, *, indexing: Indexing = EXACT) -> None:
        self._settings = settings
        self._arms = Arms(settings, indexing=indexing)
        self._search = Search()
        self._spaces: dict[str, tuple[tuple[Shelf, frozenset[str], frozenset[str]], Space, np.ndarray | None]] = {}

    @property
    def need_counts(self) -> bool:
        """Whether an arm recommends by counting the stream."""
        return self._arms.need_counts

    def draw(self, stock: Stock, queries: Sequence[Query]) -> list[Recommendation | None]:
        """One slate for each query, in their order; None for a user whom another system answers."""
        chosen = [self._arms.of(query.user_id) for query in queries]
        if len(self._arms.ours) == 1:
            mine = [place for place, arm in enumerate(chosen) if arm is self._arms.ours[0]]
            groups = self._groups(self._arms.ours[0], stock, queries, mine)
            return self._served(groups, len(queries), stock.now_ms)
        return self._balanced(stock, queries, chosen)

    def _balanced(
        self, stock: Stock, queries: Sequence[Query], chosen: Sequence[Arm | None]
    ) -> list[Recommendation | None]:
        """Every arm draws for everybody; of each user the chosen arm's slate is served, with the others' chances."""
        answered = [place for place, arm in enumerate(chosen) if arm is not None]
        served: list[Recommendation | None] = [None] * len(queries)
        groups = {arm.name: self._groups(arm, stock, queries, answered) for arm in self._arms.ours}
        for arm in self._arms.ours:
            for place, slate in enumerate(self._served(groups[arm.name], len(queries), stock.now_ms, arm=arm)):
                served[place] = slate if chosen[place] is arm else served[place]
        chances: list[dict[str, np.ndarray]] = [{} for _ in queries]
        for arm in self._arms.ours:
            for group in groups[arm.name]:
                items = [[item.item_id for item in _slate(served[one.place]).items] for one in group.asked]
                for one, chance_L in zip(group.asked, group.propensity_of(items), strict=True):
                    chances[one.place][arm.name] = chance_L
        return [slate and self._with_rivals(slate, chances[place]) for place, slate in enumerate(served)]

    def _with_rivals(self, slate: Recommendation, chances: Mapping[str, np.ndarray]) -> Recommendation:
        rivals = [arm for arm in self._arms.ours if arm.name != slate.policy]
        return replace(
            slate,
            rivals=tuple(Rival(policy=arm.name, router_probability=arm.share) for arm in rivals),
            items=tuple(
                replace(item, rival_propensities=tuple(float(chances[arm.name][slot]) for arm in rivals))
                for slot, item in enumerate(slate.items)
            ),
        )

    def _groups(self, arm: Arm, stock: Stock, queries: Sequence[Query], places: Sequence[int]) -> list[Group]:
        """The users at these places, ranked and drawn by one arm."""
        if not places:
            return []
        space, category_A = self._space(arm, stock)
        asked = self._ask(space, queries, places)
        groups = []
        for policy, members, shortlists in self._ranked(arm, space, stock, asked):
            groups += list(_drawn(arm, space, policy, members, self._diverse(arm, shortlists, category_A)))
        return groups

    def _diverse(self, arm: Arm, shortlists: list[Shortlist], category_A: np.ndarray | None) -> list[Shortlist]:
        """Room is left in every category for whatever exploration adds."""
        if category_A is None or self._settings.max_per_category is None:
            return shortlists
        most = self._settings.max_per_category - arm.policy.exploration_slots
        return [capped(shortlist, category_A, most=most) for shortlist in shortlists]

    def _space(self, arm: Arm, stock: Stock) -> tuple[Space, np.ndarray | None]:
        """Made anew only when the shelf or `items` changed."""
        shelf = arm.shelf or stock.shelf
        if arm.counts and stock.counted is not None:
            shelf = stock.counted.shelf(now=stock.now_ms / 1_000)
        made_of = (shelf, stock.withdrawn, stock.available)
        kept = self._spaces.get(arm.name)
        if kept is None or any(old is not new for old, new in zip(kept[0], made_of, strict=True)):
            before = None if kept is None or kept[0][2] is not stock.available else kept[1]
            space = Space(shelf, withdrawn=stock.withdrawn, available=stock.available, before=before)
            is_capped = self._settings.max_per_category is not None
            kept = (made_of, space, space.categories(stock.categories) if is_capped else None)
            self._spaces[arm.name] = kept
        return kept[1], kept[2]

    def _ask(self, space: Space, queries: Sequence[Query], places: Sequence[int]) -> list[Asked]:
        """Looks up the rows of all histories at once."""
        had_P = space.rows_of(chain.from_iterable(queries[place].items for place in places))
        ends = np.cumsum([len(queries[place].items) for place in places])[:-1]
        asked = []
        for place, had_T in zip(places, np.split(had_P, ends), strict=True):
            taken_X = had_T[:0] if self._settings.recommend_again else had_T
            history_T = had_T[(had_T != PADDING) & (had_T < space.size)]
            asked.append(Asked(place, queries[place], history_T, *_may_get(space, queries[place], taken_X)))
        return asked

    def _ranked(
        self, arm: Arm, space: Space, stock: Stock, asked: Sequence[Asked]
    ) -> Iterator[tuple[str, Sequence[Asked], list[Shortlist]]]:
        """Users by what can rank for them: those of whom an arm knows nothing get what is popular."""
        least = self._settings.candidates
        if arm.counts and stock.counted is not None:
            yield arm.name, asked, [_by_counts(arm, stock.counted, one, least=least) for one in asked]
            return
        network = None if arm.counts else space.shelf.network
        known = [one for one in asked if network is not None and len(one.history_T)]
        unknown = [one for one in asked if network is None or not len(one.history_T)]
        if known:
            assert space.shelf.item_RD is not None
            user_BD = _encoded(space.shelf, known)
            ranked_by = Ranking(user_BD, space.shelf.item_RD, space.shelf.index)
            yield arm.name, known, self._shortlists(ranked_by, known, space)
        if unknown:
            ones_B1, popularity_R1 = torch.ones(len(unknown), 1), space.shelf.popularity_R[:, None]
            name = arm.name if self._settings.arms else BY_POPULARITY
            yield name, unknown, self._shortlists(Ranking(ones_B1, popularity_R1, None), unknown, space)

    def _shortlists(self, ranking: Ranking, asked: Sequence[Asked], space: Space) -> list[Shortlist]:
        """The best items that each user may get, enough to draw from; among the candidates they name."""
        searched: dict[int, list[int]] = {}
        found: dict[int, Shortlist] = {}
        for nth, one in enumerate(asked):
            size = max(self._settings.candidates, one.query.slate_size)
            if one.query.candidates is None:
                searched.setdefault(size, []).append(nth)
            else:
                found[nth] = _among(ranking.user_BD[nth], ranking.item_RD, one.eligible, size=size)
        for size, users in searched.items():
            best = self._search.best(
                ranking.user_BD[users],
                ranking.item_RD,
                ranking.by,
                k=size,
                excluded_BE=torch.from_numpy(padded_rows([space.in_table(asked[nth].taken_X) for nth in users])),
                live_R=torch.from_numpy(space.live_A[: space.size]),
            )
            ranked = zip(best.row_BK.numpy(), best.score_BK.double().numpy(), users, strict=True)
            found |= {nth: Shortlist(row_C, score_C, asked[nth].eligible) for row_C, score_C, nth in ranked}
        return [found[nth] for nth in range(len(asked))]

    def _served(
        self, groups: Iterable[Group], queries: int, now_ms: int, *, arm: Arm | None = None
    ) -> list[Recommendation | None]:
        slates: list[Recommendation | None] = [None] * queries
        for group in groups:
            for user, one in enumerate(group.asked):
                slates[one.place] = _recommendation(group, user, arm or self._arms.ours[0], now_ms)
        return slates


def _slate(slate: Recommendation | None) -> Recommendation:
    assert slate is not None, "only users whom an arm of ours answers were drawn for"
    return slate


def _may_get(space: Space, query: Query, had_T: np.ndarray) -> tuple[np.ndarray, Eligible]:
    """What the user must not get, and what is left."""
    taken_X = np.append(had_T, space.rows_of(query.exclude)) if query.exclude else had_T
    if query.candidates is None:
        return taken_X, eligible_without(taken_X, row_N=space.row_N, live_R=space.live_A)
    named_N = np.intersect1d(space.row_N, space.rows_of(query.candidates))
    return taken_X, Eligible(row_N=np.setdiff1d(named_N, taken_X), excluded_X=taken_X[:0])


def _by_counts(arm: Arm, counted: Counted, asked: Asked, *, least: int) -> Shortlist:
    size = max(least, asked.query.slate_size)
    if arm.ranker == "popular" or not len(asked.history_T):
        return counted.popular(asked.eligible, size=size)
    return counted.followers(int(asked.history_T[-1]), asked.eligible, size=size)


def _encoded(shelf: Shelf, asked: Sequence[Asked]) -> Tensor:
    """Histories are padded on the left, to the longest of the batch and no more than the network looks at."""
    assert shelf.network is not None
    longest = min(max(len(one.history_T) for one in asked), shelf.network.settings.max_length)
    row_BT = np.full((len(asked), longest), PADDING, dtype=np.int64)
    for row_T, one in zip(row_BT, asked, strict=True):
        newest_T = one.history_T[-longest:]
        row_T[longest - len(newest_T) :] = newest_T
    return shelf.encoder.encode_last(torch.from_numpy(row_BT))


def _among(user_D: Tensor, item_RD: Tensor, eligible: Eligible, *, size: int) -> Shortlist:
    """Of named candidates, those that have a score."""
    row_N = eligible.row_N[eligible.row_N < item_RD.shape[0]]
    score_N = item_RD[torch.from_numpy(row_N)] @ user_D
    best = score_N.topk(min(size, len(row_N)))
    return Shortlist(row_N[best.indices.numpy()], best.values.double().numpy(), eligible)


def _drawn(
    arm: Arm, space: Space, policy: str, asked: Sequence[Asked], shortlists: Sequence[Shortlist]
) -> Iterator[Group]:
    """All users who may get the same rows but for a few at once; each of the others alone."""
    shared = [user for user, one in enumerate(asked) if one.eligible.row_N is space.row_N]
    alone = [[user] for user, one in enumerate(asked) if one.eligible.row_N is not space.row_N]
    for users in [*([shared] if shared else []), *alone]:
        members = [asked[user] for user in users]
        many = stacked([shortlists[user] for user in users])
        seeds = [arm.seed(one.query.request_id) for one in members]
        drawn = arm.policy.draw_batch(
            many,
            size_B=np.array([one.query.slate_size for one in members]),
            noise=Seeded(np.array(seeds, dtype=np.uint64)),
        )
        yield Group(space, policy, members, (many.row_BC != PADDING).sum(axis=1), seeds, drawn)


def _recommendation(group: Group, user: int, arm: Arm, now_ms: int) -> Recommendation:
    one, shelf = group.asked[user], group.space.shelf
    items = _items(group, user)
    return Recommendation(
        request_id=one.query.request_id,
        user_id=one.query.user_id,
        policy=group.policy,
        generated_at_ms=now_ms,
        items=items,
        model_version=shelf.version,
        trained_through_ms=shelf.trained_through_ms,
        trained_through_arrival_ms=shelf.trained_through_arrival_ms,
        router_probability=arm.share,
        temperature=arm.policy.temperature,
        exploration_slots=arm.policy.exploration_slots,
        eligible_count=one.eligible.count,
        candidate_count=int(group.candidates_B[user]),
        history_length=len(one.query.items),
        sequence_position=one.query.sequence_position,
        missing=one.query.slate_size - len(items),
        is_fresh=one.query.is_fresh,
        seed=group.seeds[user],
        cause=one.query.cause,
    )


def _items(group: Group, user: int) -> tuple[RecommendedItem, ...]:
    slate = group.drawn.slate
    slots = zip(
        slate.row_K[user].tolist(),
        slate.score_K[user].tolist(),
        slate.explored_K[user].tolist(),
        slate.propensity_K[user].tolist(),
        strict=True,
    )
    return tuple(
        RecommendedItem(
            item_id=group.space.item_of(row),
            position=position,
            score=None if math.isnan(score) else score,
            source="explore" if explored else "exploit",
            propensity=propensity,
            propensity_kind="exact",
        )
        for position, (row, score, explored, propensity) in enumerate(slots)
        if row != PADDING
    )
