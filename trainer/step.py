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
from model.full_softmax import fastest_products
from model.losses import Positions, cross_entropy, in_slate_pairs
from model.moving import moved
from model.negatives import Sampler
from model.optimiser import RowAdam
from model.sasrec import SASRec
from trainer.against import loss_of, negatives_of
from trainer.batch import Group
from trainer.crew import ALONE, Crew
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


Gathered = tuple[Tensor, Tensor, Tensor]
"""Hidden state, target and weight of positions that have a target."""


class Dice(NamedTuple):
    """What is random in a step."""

    common: np.random.Generator
    """The learner's, of which all processes draw alike."""
    own: np.random.Generator
    """What each draws for itself; the same one where there is but one process."""


class Portion(NamedTuple):
    """What one process learns of a micro-batch, and its share in the two means that make the loss."""

    micro: Micro
    positions: float
    slates: float


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
        crew: Crew = ALONE,
    ) -> None:
        self._crew = crew
        self._model = model
        self._optimiser = optimiser
        self._settings = settings
        self._restraints = restraints
        products = settings.softmax_products
        self._product_kind = fastest_products(model.device) if products == "auto" else getattr(torch, products)
        self._nothing_P = torch.empty(0, dtype=torch.int64, device=model.device)

    def __call__(
        self, micro: Micro, *, sampler: Sampler, size: int, rng: np.random.Generator, ceiling: float = math.inf
    ) -> Stepped:
        """Learns the micro-batch, or nothing of it where its loss is not finite or lies above the ceiling."""
        portion, dice = portion_of(micro, self._crew), Dice(rng, self._crew.own(rng, step=self._optimiser.steps))
        loss = torch.zeros((), device=self._model.device)
        if micro.groups or micro.replayed:
            loss = self._against_catalogue(portion.micro, sampler=sampler, size=size, dice=dice)
        loss = loss if portion.positions == 1.0 else portion.positions * loss
        if portion.micro.slates is not None:
            inside = self._inside_slates(portion.micro.slates, dice.own)
            loss = loss + portion.slates * self._settings.in_slate_weight * inside
        total = self._crew.total(loss)
        if not math.isfinite(total.loss) or total.loss > ceiling or not total.teaches:
            self._model.zero_grad(set_to_none=True)
            return Stepped(total.loss, 0.0, ceiling)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        self._crew.add_up(self._model)
        return Stepped(total.loss, self._optimiser.step(), ceiling)

    def _against_catalogue(self, micro: Micro, *, sampler: Sampler, size: int, dice: Dice) -> Tensor:
        """Term (b): every target position against the catalogue, with its weight; and what restraints cost."""
        groups = [*micro.groups, *micro.replayed]
        gathered = [targets_of(self._model, group, dice.own) for group in groups]
        loss = loss_of(self._settings, items=len(sampler.row_N))
        negative = None if loss is cross_entropy else self._negatives(groups, gathered, sampler=sampler, dice=dice)
        if not gathered:
            return torch.zeros((), device=self._model.device)
        hidden_PD, target_P, weight_P = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        positions = Positions(
            hidden_PD=hidden_PD,
            target_P=target_P,
            weight_P=weight_P,
            item_RD=self._model.item_RD,
            size=size,
            live_N=self._live(sampler, size=size),
            negative=negative,
            log_q_R=None if sampler.cumulative_N is None else self._log_q(sampler),
            product_kind=self._product_kind,
        )
        seen = Seen(positions, groups, micro.replayed)
        costs = [restraint.cost(self._model, seen, rng=dice.own) for restraint in self._restraints]
        return sum((cost for cost in costs if cost is not None), start=loss(positions))

    def _negatives(
        self, groups: Sequence[Group], gathered: Sequence[Gathered], *, sampler: Sampler, dice: Dice
    ) -> Tensor | None:
        """Those that all clicks share are the same for every process, also for one that has no click."""
        are_shared = self._settings.negatives_from == "catalogue"
        if not (gathered or are_shared):
            return None
        target_P = torch.cat([target_P for _, target_P, _ in gathered]) if gathered else self._nothing_P
        rng = dice.common if are_shared else dice.own
        return negatives_of(self._settings, groups, target_P=target_P, sampler=sampler, rng=rng)

    def _live(self, sampler: Sampler, *, size: int) -> Tensor | None:
        """What may be drawn is what there is; None where that is every row."""
        if len(sampler.row_N) == size - 1:
            return None
        return torch.from_numpy(sampler.row_N).to(self._model.device)

    def _log_q(self, sampler: Sampler) -> Tensor:
        return sampler.log_q(rows=self._model.capacity).to(self._model.device)

    def _inside_slates(self, slates: Slates, rng: np.random.Generator) -> Tensor:
        """Term (a): the clicked items of a slate against those that stayed unclicked."""
        device = self._model.device
        hidden_SD = self._model(moved(slates.row_ST, device), last=1, rng=rng)[:, 0]
        item_SKD = functional.embedding(
            moved(slates.item_SK, device), self._model.item_RD, padding_idx=PADDING, sparse=True
        )
        score_SK = torch.einsum("sd,skd->sk", hidden_SD, item_SKD)
        return in_slate_pairs(
            score_SK, *(moved(tensor, device) for tensor in (slates.clicked_SK, slates.negative_SK, slates.weight_SK))
        )


def portion_of(micro: Micro, crew: Crew) -> Portion:
    """This process's share of the sequences and of the slates; all of them where it is alone."""
    if crew.size == 1:
        return Portion(micro, 1.0, 1.0)
    assert not micro.replayed, "restraints work with one process"
    groups = [Group(*(tensor[crew.mine] for tensor in group)) for group in micro.groups]
    groups = [group for group in groups if len(group.row_BT)]
    slates = micro.slates and Slates(*(tensor[crew.mine] for tensor in micro.slates))
    return Portion(
        Micro(groups, slates if slates and len(slates.row_ST) else None),
        _share(_positions(groups), _positions(micro.groups)),
        _share(len(slates.row_ST), len(micro.slates.row_ST)) if slates and micro.slates else 0.0,
    )


def _positions(groups: Sequence[Group]) -> int:
    return sum(int((group.target_BT != PADDING).sum()) for group in groups)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def targets_of(model: SASRec, group: Group, rng: np.random.Generator | None) -> Gathered:
    """Hidden state, target and weight of the positions that have a target; the others are not even computed last."""
    wanted_BT = group.target_BT != PADDING
    row_BT, target_P, weight_P, wanted_on_device_BT = (
        moved(tensor, model.device)
        for tensor in (group.row_BT, group.target_BT[wanted_BT], group.weight_BT[wanted_BT], wanted_BT)
    )
    return model.states_at(row_BT, wanted_on_device_BT, rng=rng), target_P, weight_P
