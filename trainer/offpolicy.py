"""What two models would have earned, from slates that whatever is live has served; docs/propensities.md section 6.

A model is judged with the policy by which it would serve. For every item of a logged slate that is the chance that the
policy, on that model's scores and the history at the time of the request, has it in its slate: `propensity_of` given
the noise of all other items (model/policies.py), a mean over draws. Over the logged propensity it is the impression's
weight; its reward is whether it was clicked, over the chance that its slot was looked at. Shapes: S slates, I served
impressions, K slots of the widest slate, T positions, C candidates, X excluded items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from model.catalogue import PADDING
from model.checkpoint import ServingModel
from model.estimators import Estimate, snips, snips_difference
from model.noise import Seeded
from model.policies import Policy, Shortlists, padded_rows
from model.ranking import top_k
from model.settings import PolicySettings
from stream.examples import ShownItem, SlateExample
from trainer.positions import MIN_EXAMINATION, examination
from trainer.weights import is_probability

DRAWS = 8
"""Draws over which an item's chance is averaged; each is unbiased."""
SLATES_AT_ONCE = 256
SEED = 1
SMOOTHING = 1.0
"""Impressions, half of them seen, that every slot has besides what is known of it."""


class Compared(NamedTuple):
    """Clicks per served item, corrected for position, that each model's slates would have got."""

    champion: Estimate
    challenger: Estimate
    difference: Estimate
    slates: int


class Impressions(NamedTuple):
    """Served items with an exact propensity."""

    slate_I: Int[np.ndarray, " I"]
    slot_I: Int[np.ndarray, " I"]
    inverse_I: Float[np.ndarray, " I"]
    """1 / the logged propensity."""
    reward_I: Float[np.ndarray, " I"]


def compared(
    champion: ServingModel,
    challenger: ServingModel,
    slates: Sequence[SlateExample],
    *,
    policy: PolicySettings,
    position_bias: float,
    confidence: float,
) -> Compared:
    """Both on the same slates, none of which may have been served before either had learnt its last example."""
    seen = impressions_of(slates, position_bias=position_bias)
    at = (seen.slate_I, seen.slot_I)
    than_I, weight_I = (
        chances(one, slates, policy=policy)[at] * seen.inverse_I if slates else np.empty(0)
        for one in (champion, challenger)
    )
    return Compared(
        snips(than_I, seen.reward_I, confidence=confidence),
        snips(weight_I, seen.reward_I, confidence=confidence),
        snips_difference(weight_I, than_I, seen.reward_I, group_I=seen.slate_I, confidence=confidence),
        len(slates),
    )


def served_after(slates: Sequence[SlateExample], at_ms: int | None) -> list[SlateExample]:
    """Those that were drawn later than that, each once: a correction tells of a slate that was told before."""
    return [slate for slate in slates if not slate.correction and slate.context and slate.timestamp_ms > (at_ms or 0)]


def impressions_of(slates: Sequence[SlateExample], *, position_bias: float) -> Impressions:
    """Every item whose propensity is exact; its reward is `clicked * mean(theta) / theta_k`."""
    theta_by_position = looked_at(slates)
    rows = [
        (index, slot, 1.0 / item.propensity, _theta(item, theta_by_position, bias=position_bias), item.clicked)
        for index, slate in enumerate(slates)
        for slot, item in enumerate(slate.items)
        if item.propensity_kind == "exact" and item.source != "fixed" and is_probability(item.propensity)
        if item.propensity is not None
    ]
    slate_I, slot_I, inverse_I, theta_I, clicked_I = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    mean = float(theta_I.mean()) if len(theta_I) else 1.0
    return Impressions(slate_I.astype(np.int64), slot_I.astype(np.int64), inverse_I, clicked_I * mean / theta_I)


def looked_at(slates: Sequence[SlateExample]) -> Mapping[int | None, float]:
    """theta_k by position, where impressions said which items came into view."""
    shown: dict[int | None, float] = defaultdict(lambda: SMOOTHING)
    seen: dict[int | None, float] = defaultdict(lambda: SMOOTHING / 2)
    for slate in slates:
        if any(item.seen is not None for item in slate.items):
            for item in slate.items:
                shown[item.position] += 1.0
                seen[item.position] += bool(item.seen)
    return {position: max(MIN_EXAMINATION, seen[position] / shown[position]) for position in shown}


def _theta(item: ShownItem, by_position: Mapping[int | None, float], *, bias: float) -> float:
    if item.seen is not None and item.position in by_position:
        return by_position[item.position]
    theta = examination(item.position, bias=bias)
    return 1.0 if np.isnan(theta) else theta


def chances(
    serving: ServingModel, slates: Sequence[SlateExample], *, policy: PolicySettings
) -> Float[np.ndarray, "S K"]:
    """The chance of every slot's item to be in the slate that this model would draw; 0 in slots that a slate lacks."""
    widest = max(len(slate.items) for slate in slates)
    parts = [
        _chances(serving, slates[start : start + SLATES_AT_ONCE], policy, widest=widest, seed=SEED + start)
        for start in range(0, len(slates), SLATES_AT_ONCE)
    ]
    return np.concatenate(parts)


def _chances(
    serving: ServingModel, slates: Sequence[SlateExample], policy: PolicySettings, *, widest: int, seed: int
) -> Float[np.ndarray, "S K"]:
    rows_of = serving.catalogue.rows_of
    row_SK = padded_rows([rows_of(item.item_id for item in slate.items) for slate in slates])
    row_SK = np.pad(row_SK, ((0, 0), (0, widest - row_SK.shape[1])))
    shortlists = _shortlists(serving, slates, policy)
    draws = Policy(temperature=policy.temperature, exploration_slots=policy.exploration_slots)
    size_S = np.full(len(slates), policy.slate_size)
    rng = np.random.default_rng(seed)
    total_SK = np.zeros(row_SK.shape)
    for _ in range(DRAWS):
        noise = Seeded(rng.integers(2**64, size=len(slates), dtype=np.uint64))
        drawn = draws.draw_batch(shortlists, size_B=size_S, noise=noise)
        # What the model does not know it can only explore.
        total_SK += np.where(row_SK == PADDING, drawn.chance_B[:, None], drawn.propensity_of(row_SK))
    is_item_SK = np.arange(widest) < np.array([len(slate.items) for slate in slates])[:, None]
    return np.where(is_item_SK, total_SK / DRAWS, 0.0)


@torch.inference_mode()
def _shortlists(serving: ServingModel, slates: Sequence[SlateExample], policy: PolicySettings) -> Shortlists:
    """What the policy chooses from at the time of each request: not what the user had."""
    catalogue, network = serving.catalogue, serving.model
    length = max(len(slate.context) for slate in slates)
    row_ST = np.full((len(slates), length), PADDING, dtype=np.int64)
    for row_T, slate in zip(row_ST, slates, strict=True):
        row_T[length - len(slate.context) :] = catalogue.rows_of(slate.context)
    live_R = catalogue.live_mask()
    had = [np.unique(row_T[row_T != PADDING]) for row_T in row_ST]
    excluded_SX = padded_rows([] if policy.recommend_again else had)
    if policy.recommend_again:
        excluded_SX = np.zeros((len(slates), 0), dtype=np.int64)
    history_ST = torch.from_numpy(row_ST)
    best = top_k(
        network.encode_last(history_ST[:, -network.settings.max_length :]),
        network.item_RD[: catalogue.size],
        k=min(policy.candidates, max(1, len(catalogue))),
        excluded_BE=torch.from_numpy(excluded_SX),
        live_R=torch.from_numpy(live_R),
    )
    return Shortlists(
        best.row_BK.numpy(),
        best.score_BK.double().numpy(),
        np.flatnonzero(live_R),
        excluded_SX,
        len(catalogue) - (excluded_SX != PADDING).sum(axis=1),
    )
