"""The self-fulfilling prophecy, in one context with known truth (docs/propensities.md section 1), and its cures.

A logger that prefers bad items served 20,000 slates; what was clicked is learnt with our weights and losses.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from model.losses import LOSSES, Positions, in_slate_pairs
from model.policies import Shortlist, eligible_without, softmax
from stream.examples import ClickExample, ExampleId, Served
from trainer.exposure import Exposure
from trainer.settings import TrainerSettings
from trainer.weights import Weigher

ITEMS = 50
SLATE = 5
REQUESTS = 20_000
NO_CAP = 1e9


class World(NamedTuple):
    """What the slates showed, and what was liked."""

    liking_N: np.ndarray
    """The truth: the chance of a click on an item that is shown."""
    row_SK: np.ndarray
    propensity_SK: np.ndarray
    clicked_SK: np.ndarray


@functools.cache
def world() -> World:
    rng = np.random.default_rng(11)
    liking_N = np.exp(np.linspace(np.log(0.05), np.log(0.5), ITEMS))
    preference_N = -0.55 * np.log(liking_N) + rng.normal(0.0, 1.0, ITEMS)
    row_N = np.arange(1, ITEMS + 1)
    eligible = eligible_without(np.empty(0, dtype=np.int64), row_N=row_N, live_R=np.arange(ITEMS + 1) > 0)
    shortlist = Shortlist(row_N, preference_N, eligible)
    slates = softmax(1.0).draw_many(shortlist, slate_size=SLATE, count=REQUESTS, rng=rng)
    clicked_SK = rng.random(slates.row_K.shape) < liking_N[slates.row_K - 1]
    return World(liking_N, slates.row_K, slates.propensity_K, clicked_SK)


@functools.cache
def clicks() -> list[ClickExample]:
    logged = world()
    rows, propensities = logged.row_SK[logged.clicked_SK], logged.propensity_SK[logged.clicked_SK]
    return [
        ClickExample(
            id=ExampleId("clicks", 0, offset, 0),
            user_id="u",
            context=("a",),
            item_id=str(row),
            timestamp_ms=0,
            arrived_at_ms=0,
            served=Served("softmax", "r", None, propensity, "exact", "exploit"),
        )
        for offset, (row, propensity) in enumerate(zip(rows.tolist(), propensities.tolist(), strict=True))
    ]


def agreement(score_N: Tensor) -> float:
    """Kendall's tau between scores and truth."""
    difference_NN = np.sign(score_N.numpy()[:, None] - score_N.numpy()[None, :])
    truth_NN = np.sign(world().liking_N[:, None] - world().liking_N[None, :])
    return float((difference_NN * truth_NN).sum() / (ITEMS * (ITEMS - 1)))


def learnt(loss_name: str, weight_P: np.ndarray) -> float:
    """The agreement after learning every click, of one weight for each; clicks of an item are learnt together."""
    rows = np.array([int(click.item_id) for click in clicks()])
    weight_N = np.bincount(rows, weights=weight_P, minlength=ITEMS + 1)[1:]
    item_RD = torch.zeros(ITEMS + 1, 1, requires_grad=True)
    adam = torch.optim.Adam([item_RD], lr=0.15)
    positions = functools.partial(
        Positions,
        hidden_PD=torch.ones(ITEMS, 1),
        target_P=torch.arange(1, ITEMS + 1),
        weight_P=torch.from_numpy(weight_N / weight_N.mean()).float(),
        size=ITEMS + 1,
        negative=None if loss_name == "cross_entropy" else torch.arange(1, ITEMS + 1),
        log_q_R=torch.full((ITEMS + 1,), -float(np.log(ITEMS))),
    )
    for _ in range(100):
        adam.zero_grad()
        (gradient_RD,) = torch.autograd.grad(LOSSES[loss_name](positions(item_RD=item_RD)), [item_RD])
        item_RD.grad = gradient_RD.to_dense()
        adam.step()
    return agreement(item_RD.detach()[1:, 0])


def weighed(cap: float) -> np.ndarray:
    settings = TrainerSettings(propensity_cap=cap, weight_window=10**6)
    return Weigher(settings).weigh(clicks(), exposure=Exposure(window=100)).weight_N


@pytest.mark.parametrize("loss_name", sorted(LOSSES))
def test_only_weighed_clicks_tell_taste_from_exposure(loss_name: str) -> None:
    naive = learnt(loss_name, np.ones(len(clicks())))
    capped = learnt(loss_name, weighed(5.0))
    exact = learnt(loss_name, weighed(NO_CAP))

    assert naive < 0.45
    assert exact > 0.90
    assert naive < capped < exact


def test_inside_the_slate_taste_is_told_without_any_propensity() -> None:
    logged = world()
    score_N = torch.zeros(ITEMS, requires_grad=True)
    adam = torch.optim.Adam([score_N], lr=0.15)
    row_SK, clicked_SK = torch.from_numpy(logged.row_SK - 1), torch.from_numpy(logged.clicked_SK)
    for _ in range(60):
        adam.zero_grad()
        loss = in_slate_pairs(score_N[row_SK], clicked_SK, ~clicked_SK, torch.ones(row_SK.shape))
        torch.autograd.backward(loss)
        adam.step()

    assert agreement(score_N.detach()) > 0.90
