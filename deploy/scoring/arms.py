"""The recommenders that share the surface: which of them is a user's, and how each draws."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from deploy.scoring.indexing import EXACT, Indexing
from deploy.scoring.shelf import Shelf, item_table, shelf_of
from model.checkpoint import read_serving
from model.policies import Policy
from model.router import Router
from model.settings import ArmSettings, PolicySettings
from model.store import place_of
from trainer.live import keep

ALONE = "sasrec"
"""The policy's name where there is one recommender."""
SEED_BYTES = 6


class Arm(NamedTuple):
    """One recommender of ours."""

    name: str
    share: float
    """The router's probability."""
    ranker: str
    policy: Policy
    shelf: Shelf | None
    """A checkpoint that this arm serves from, whatever is announced."""

    @property
    def counts(self) -> bool:
        """Whether it ranks by what was counted, without a network."""
        return self.ranker in {"popular", "transitions"}

    def seed(self, request_id: str) -> int:
        """The same request always gets the same draw, each arm one of its own; 48 bits, which JSON keeps exactly."""
        text = request_id if self.name == ALONE else f"{self.name}\0{request_id}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=SEED_BYTES).digest(), "big")


class Arms:
    """All that are set, or SASRec alone.

    Raises:
        BrokenCheckpointError: an arm's own checkpoint cannot be served from.
    """

    def __init__(self, settings: PolicySettings, *, indexing: Indexing = EXACT) -> None:
        arms = settings.arms or {ALONE: ArmSettings(share=1.0)}
        self._router = Router({name: arm.share for name, arm in arms.items()}, salt=settings.split_salt)
        ours = {name: arm for name, arm in arms.items() if arm.ranker != "elsewhere"}
        self.ours = [_arm(name, arm, settings, indexing) for name, arm in ours.items()]
        self._by_name = {arm.name: arm for arm in self.ours}

    @property
    def need_counts(self) -> bool:
        """Whether the stream must be counted."""
        return any(arm.counts for arm in self.ours)

    def of(self, user_id: str) -> Arm | None:
        """The user's recommender; None where it is not ours."""
        return self._by_name.get(self._router.choose(user_id))


def _arm(name: str, arm: ArmSettings, settings: PolicySettings, indexing: Indexing) -> Arm:
    temperature = settings.temperature if arm.temperature is None else arm.temperature
    slots = settings.exploration_slots if arm.exploration_slots is None else arm.exploration_slots
    fills = settings.max_per_category is None
    return Arm(
        name=name,
        share=arm.share,
        ranker=arm.ranker,
        policy=Policy(temperature=temperature, exploration_slots=slots, fills=fills),
        shelf=None if arm.checkpoint is None else _shelf(arm.checkpoint, indexing),
    )


def _shelf(checkpoint: str, indexing: Indexing) -> Shelf:
    """Of a checkpoint that is kept from now on: another trainer's pruning must not fail the worker's next start."""
    serving = read_serving(place_of(checkpoint))
    keep(place_of(checkpoint))
    return shelf_of(serving, index=indexing.index_for(item_table(serving), before=None, changed=None))
