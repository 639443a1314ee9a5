"""The closed loop in a world whose truth is known: what the learner serves decides what is clicked, and that it learns.

The network, the trainer's weights and step, and the policy are the product's own; the join is left out, and its outcome
(clicks with the propensity they were served by, slates with what stayed unclicked) is made directly. Shapes: U users,
N items, K slots, B requests of a round, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from model.policies import Eligible, Policy, Shortlist, Slate, eligible_without, mixture
from model.ranking import TopK, top_k
from model.settings import ModelSettings
from stream.events import Source
from stream.examples import ClickExample, Example, ExampleId, Served, ShownItem, SlateExample
from trainer.exposure import gini
from trainer.learner import Learner
from trainer.settings import TrainerSettings

SLATE = 10
TASTES = 4
"""Dimensions of what users and items are like."""
TASTE_SPREAD = 2.0
QUALITY_SPREAD = 0.7
INDIFFERENCE = 3.0
"""All three in log-odds: an item of no particular appeal is clicked by `sigmoid(-INDIFFERENCE)` of those who look."""
POSITION_BIAS = 0.5
"""theta_k = 1 / (k + 1) ** POSITION_BIAS, the position model of the world and, by default, of the trainer."""
BEFORE = 3
"""Items that every user had before the log begins, found without help."""
NETWORK = ModelSettings(max_length=16, units=32, blocks=1, dropout=0.1)
LATEST = 0.2
"""The last share of the requests, on which exposure and clicks are described."""
START_MS = 1_700_000_000_000


class Size(NamedTuple):
    """How large an experiment is."""

    items: int = 300
    users: int = 2_000
    legacy_requests: int = 2_000
    """Served by the recommender that was there before, which knows nothing of taste."""
    requests: int = 20_000
    """Served by the learner."""
    round_requests: int = 25
    """Requests between two steps of the learner; different users."""


class Serving(NamedTuple):
    """The policy by which the learner's scores become slates."""

    temperature: float = 0.5
    exploration_slots: int = 1


class Arm(NamedTuple):
    """What a learner makes of the same kind of log."""

    name: str
    settings: dict[str, float]
    learns: tuple[type[Example], ...] = (ClickExample, SlateExample)


ARMS = (
    Arm("naive", {"propensity_cap": 1.0, "position_bias": 0.0, "in_slate_weight": 0.0}),
    Arm("weighted", {"in_slate_weight": 0.0}),
    Arm("in-slate", {}, learns=(SlateExample,)),
    Arm("both", {}),
)
"""Naive takes every click for taste; `both` is the trainer as it stands by default."""


class World(NamedTuple):
    """The truth."""

    chance_UN: np.ndarray
    """gamma: the chance that a user who looks at an item clicks it."""
    legacy_N: np.ndarray
    """What the recommender that was there before made of the items: nothing to do with taste."""


class Outcome(NamedTuple):
    """What came of one run."""

    ndcg10: float
    """Of the learner's ranking against the truth, over all users, each without what the user has had."""
    coverage: float
    """Share of the items that stand among anybody's ten best."""
    gini: float
    """Of how often items were served, lately."""
    top_share: float
    """Share of the latest clicks that the most clicked 1 % of the items got."""


def make_world(size: Size, rng: np.random.Generator) -> World:
    """Tastes, items, and an indifferent recommender."""
    taste_UD = rng.normal(size=(size.users, TASTES))
    item_ND = rng.normal(size=(size.items, TASTES)) / np.sqrt(TASTES)
    quality_N = rng.normal(0.0, QUALITY_SPREAD, size.items)
    appeal_UN = TASTE_SPREAD * taste_UD @ item_ND.T + quality_N - INDIFFERENCE
    return World(1.0 / (1.0 + np.exp(-appeal_UN)), rng.normal(size=size.items))


class Loop:
    """One learner in one world."""

    def __init__(self, world: World, size: Size, *, arm: Arm, serving: Serving, seed: int) -> None:
        self._world, self._size, self._arm = world, size, arm
        self._rng = np.random.default_rng(seed)
        self._serving = mixture(temperature=serving.temperature, exploration_slots=serving.exploration_slots)
        trainer = TrainerSettings.model_validate({"position_bias": POSITION_BIAS, "seed": seed, **arm.settings})
        self.learner = Learner(NETWORK, trainer)
        self.learner.admit(str(item) for item in range(size.items))
        self._live_R = np.arange(size.items + 1) > 0
        self._histories = [self._found_without_help(user) for user in range(size.users)]
        self._slates: list[SlateExample] = []
        self._events = 0
        self._served_N, self._clicked_N = np.zeros(size.items), np.zeros(size.items)

    def run(self) -> Outcome:
        """The legacy recommender's log first, then its own."""
        rounds = self._size.requests // self._size.round_requests
        for _ in range(self._size.legacy_requests // self._size.round_requests):
            self._round(self._by_legacy, mixture(temperature=1.0, exploration_slots=0))
        for number in range(rounds):
            if number == round((1 - LATEST) * rounds):
                self._served_N[:], self._clicked_N[:] = 0.0, 0.0
            self._round(self._by_network, self._serving)
        return self._outcome()

    def _found_without_help(self, user: int) -> list[int]:
        chance_N = self._world.chance_UN[user]
        found: list[int] = self._rng.choice(len(chance_N), BEFORE, replace=False, p=chance_N / chance_N.sum()).tolist()
        return found

    def _round(self, shortlists: Callable[[Sequence[int]], Iterator[Shortlist]], policy: Policy) -> None:
        """Requests of different users, slates for them, and a step of the learner on what came of it.

        A click is learnt at once, a slate a round later, when it has closed.
        """
        users = self._rng.choice(self._size.users, size=self._size.round_requests, replace=False).tolist()
        examples: list[Example] = list(self._slates)
        self._slates.clear()
        for user, shortlist in zip(users, list(shortlists(users)), strict=True):
            slate = policy.draw(shortlist, slate_size=SLATE, rng=self._rng)
            examples += self._look(user, slate)
        self.learner.learn([example for example in examples if isinstance(example, self._arm.learns)])

    def _by_legacy(self, users: Sequence[int]) -> Iterator[Shortlist]:
        order_N = np.argsort(-self._world.legacy_N)
        for user in users:
            row_C = order_N[~np.isin(order_N, self._histories[user])] + 1
            yield Shortlist(row_C, self._world.legacy_N[row_C - 1], self._eligible(user))

    def _by_network(self, users: Sequence[int]) -> Iterator[Shortlist]:
        best = self._best(users, k=self._size.items)
        for user, score_C, row_C in zip(users, best.score_BK.double().numpy(), best.row_BK.numpy(), strict=True):
            yield Shortlist(row_C, score_C, self._eligible(user))

    def _best(self, users: Sequence[int], *, k: int) -> TopK:
        network = self.learner.network
        longest = max(len(self._histories[user]) for user in users)
        had_BE = np.zeros((len(users), longest), dtype=np.int64)
        for had_E, user in zip(had_BE, users, strict=True):
            had_E[longest - len(self._histories[user]) :] = np.array(self._histories[user]) + 1
        return top_k(
            network.encode_last(torch.from_numpy(had_BE[:, -network.settings.max_length :].copy())),
            network.item_RD.detach()[: self._size.items + 1],
            k=k,
            excluded_BE=torch.from_numpy(had_BE),
            live_R=torch.from_numpy(self._live_R),
        )

    def _eligible(self, user: int) -> Eligible:
        return eligible_without(
            np.array(self._histories[user]) + 1, row_N=np.flatnonzero(self._live_R), live_R=self._live_R
        )

    def _look(self, user: int, slate: Slate) -> Iterator[ClickExample]:
        item_K = slate.row_K - 1
        theta_K = np.arange(1.0, len(item_K) + 1) ** -POSITION_BIAS
        clicked_K = self._rng.random(len(item_K)) < theta_K * self._world.chance_UN[user, item_K]
        self._served_N[item_K] += 1
        self._clicked_N[item_K[clicked_K]] += 1
        self._slates.append(self._slate(user, slate, clicked_K))
        for clicks_since, position in enumerate(np.flatnonzero(clicked_K).tolist()):
            yield self._click(user, slate, position, clicks_since=clicks_since)
            self._histories[user].append(int(item_K[position]))

    def _click(self, user: int, slate: Slate, position: int, *, clicks_since: int) -> ClickExample:
        return ClickExample(
            id=self._next_id("clicks"),
            user_id=str(user),
            context=self._context(user),
            item_id=str(slate.row_K[position] - 1),
            timestamp_ms=START_MS + self._events,
            arrived_at_ms=START_MS + self._events,
            served=Served(
                policy="loop",
                request_id="r",
                position=position,
                propensity=float(slate.propensity_K[position]),
                propensity_kind="exact",
                source=_source(slate, position),
                clicks_since=clicks_since,
            ),
        )

    def _slate(self, user: int, slate: Slate, clicked_K: np.ndarray) -> SlateExample:
        return SlateExample(
            id=self._next_id("impressions"),
            user_id=str(user),
            context=self._context(user),
            request_id="r",
            policy="loop",
            items=tuple(
                ShownItem(str(row - 1), slot, float(p), "exact", _source(slate, slot), None, bool(clicked))
                for slot, (row, p, clicked) in enumerate(
                    zip(slate.row_K.tolist(), slate.propensity_K.tolist(), clicked_K.tolist(), strict=True)
                )
            ),
            timestamp_ms=START_MS + self._events,
            arrived_at_ms=START_MS + self._events,
        )

    def _context(self, user: int) -> tuple[str, ...]:
        return tuple(str(item) for item in self._histories[user][-NETWORK.max_length :])

    def _next_id(self, source: str) -> ExampleId:
        self._events += 1
        return ExampleId(source, 0, self._events, 0)

    def _outcome(self) -> Outcome:
        users = range(self._size.users)
        item_UK = self._best(users, k=SLATE).row_BK.numpy() - 1
        return Outcome(
            ndcg10=float(np.mean([self._ndcg(user, item_UK[user]) for user in users])),
            coverage=len(np.unique(item_UK)) / self._size.items,
            gini=gini(self._served_N),
            top_share=float(np.sort(self._clicked_N)[-max(1, self._size.items // 100) :].sum() / self._clicked_N.sum()),
        )

    def _ndcg(self, user: int, item_K: np.ndarray) -> float:
        """Graded by the true chances, against the best ten of what the user has not had."""
        chance_N = self._world.chance_UN[user].copy()
        chance_N[self._histories[user]] = 0.0
        discount_K = 1.0 / np.log2(np.arange(2.0, SLATE + 2))
        return float(chance_N[item_K] @ discount_K / (np.sort(chance_N)[::-1][:SLATE] @ discount_K))


def _source(slate: Slate, slot: int) -> Source:
    return "explore" if slate.explored_K[slot] else "exploit"
