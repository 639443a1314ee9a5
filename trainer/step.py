"""One optimiser step: both terms of docs/propensities.md section 4, and the refusal of what is not finite.

Shapes: B sequences, T positions, P positions with a target, S slates, K slots of the widest slate, D units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING
from model.losses import Positions, cross_entropy, in_slate_pairs
from model.negatives import Sampler
from model.optimiser import RowAdam
from model.sasrec import SASRec
from trainer.against import loss_of, negatives_of
from trainer.batch import Group
from trainer.remembering import Restraint, Seen
from trainer.settings import TrainerSettings


class Slates(NamedTuple):
    """Closed slates as tensors: the history at request time and, slot by slot, what came of it."""

    row_ST: Int[Tensor, "S T"]
    """History, padded on the left."""
    item_SK: Int[Tensor, "S K"]
    """PADDING in slots that the slate does not have."""
    clicked_SK: Bool[Tensor, "S K"]
    negative_SK: Bool[Tensor, "S K"]
    weight_SK: Float[Tensor, "S K"]


class Micro(NamedTuple):
    """What one step learns from."""

    groups: Sequence[Group]
    slates: Slates | None
    replayed: Sequence[Group] = ()
    """Sequences that are learnt again, where something is to know that they are; else they stand among `groups`."""


Fault = Literal["not_finite", "spike"]


class Stepped(NamedTuple):
    """How a step went. A fault means that no weight was changed."""

    loss: float
    gradient_norm: float
    ceiling: float = math.inf
    """The largest loss that may change the weights."""

    @property
    def fault(self) -> Fault | None:
        """Why the weights stayed as they were, if they did."""
        if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
            return "not_finite"
        return "spike" if self.loss > self.ceiling else None


class Step:
    """Changes the weights of one network; everything random comes from the generator that is passed in."""

    def __init__(
        self,
        model: SASRec,
        optimiser: RowAdam,
        settings: TrainerSettings,
        *,
        restraints: Sequence[Restraint] = (),
    ) -> None:
        self._model = model
        self._optimiser = optimiser
        self._settings = settings
        self._restraints = restraints

    def __call__(
        self, micro: Micro, *, sampler: Sampler, size: int, rng: np.random.Generator, ceiling: float = math.inf
    ) -> Stepped:
        """Learns the micro-batch, or nothing of it where its loss is not finite or lies above the ceiling."""
        loss = self._against_catalogue(micro, sampler=sampler, size=size, rng=rng)
        if micro.slates is not None:
            loss = loss + self._settings.in_slate_weight * self._inside_slates(micro.slates, rng)
        value = float(loss.detach())
        if not math.isfinite(value) or value > ceiling or not loss.requires_grad:
            self._model.zero_grad(set_to_none=True)
            return Stepped(value, 0.0, ceiling)
        torch.autograd.backward(loss)
        return Stepped(value, self._optimiser.step(), ceiling)

    def _against_catalogue(self, micro: Micro, *, sampler: Sampler, size: int, rng: np.random.Generator) -> Tensor:
        """Term (b): every target position against the catalogue, with its weight; and what restraints cost."""
        groups = [*micro.groups, *micro.replayed]
        gathered = [targets_of(self._model, group, rng) for group in groups]
        if not gathered:
            return torch.zeros((), device=self._model.device)
        hidden_PD, target_P, weight_P = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        loss = loss_of(self._settings, items=len(sampler.row_N))
        positions = Positions(
            hidden_PD=hidden_PD,
            target_P=target_P,
            weight_P=weight_P,
            item_RD=self._model.item_RD,
            size=size,
            negative=None
            if loss is cross_entropy
            else negatives_of(self._settings, groups, target_P=target_P, sampler=sampler, rng=rng),
            log_q_R=None if sampler.cumulative_N is None else self._log_q(sampler),
            product_kind=getattr(torch, self._settings.softmax_products),
        )
        seen = Seen(positions, groups, micro.replayed)
        costs = [restraint.cost(self._model, seen, rng=rng) for restraint in self._restraints]
        return sum((cost for cost in costs if cost is not None), start=loss(positions))

    def _log_q(self, sampler: Sampler) -> Tensor:
        return sampler.log_q(rows=self._model.capacity).to(self._model.device)

    def _inside_slates(self, slates: Slates, rng: np.random.Generator) -> Tensor:
        """Term (a): the clicked items of a slate against those that stayed unclicked."""
        device = self._model.device
        hidden_SD = self._model(slates.row_ST.to(device), last=1, rng=rng)[:, 0]
        item_SKD = functional.embedding(
            slates.item_SK.to(device), self._model.item_RD, padding_idx=PADDING, sparse=True
        )
        score_SK = torch.einsum("sd,skd->sk", hidden_SD, item_SKD)
        return in_slate_pairs(
            score_SK, slates.clicked_SK.to(device), slates.negative_SK.to(device), slates.weight_SK.to(device)
        )


def targets_of(model: SASRec, group: Group, rng: np.random.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden state, target and weight of the positions that have a target; the others are not even computed last."""
    wanted_BT = group.target_BT != PADDING
    hidden_PD = model.states_at(group.row_BT.to(model.device), wanted_BT.to(model.device), rng=rng)
    return hidden_PD, group.target_BT[wanted_BT].to(model.device), group.weight_BT[wanted_BT].to(model.device)
