"""Knowledge distillation: on replayed sequences a step is to predict what the last accepted weights predicted.

`L = weight * mean_a KL(softmax(t_a) || softmax(s_a))` (Hinton et al. 2015; on exemplars alone, as in ADER, Mi et al.
2020), where t and s are the scores of the accepted and the present weights over the items of the step: its targets and
its shared negatives, or all items where these are no more.

The accepted network knows the items that there were at acceptance. From the first one on that came later, in a new row
or in that of another item, a sequence teaches nothing here: the present network reads what the accepted one cannot, and
is free to make of it what it will. Shapes: B sequences, T slots, P replayed positions, A of them that the accepted
network answers, C candidates, D units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING
from model.losses import Positions
from model.optimiser import RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings
from trainer.batch import Group
from trainer.remembering import Seen
from trainer.step import targets_of

CANDIDATES = 4_096
"""Most items, besides the targets, over which predictions are compared."""
KNOWN = "known_R"


class Answers(NamedTuple):
    """What the accepted network makes of replayed sequences."""

    hidden_AD: Float[Tensor, "A D"]
    given_P: Bool[Tensor, " P"]
    """At which of all positions with a target these stand."""


class Teacher:
    """The last accepted network, frozen."""

    name = "teacher."

    def __init__(self, settings: ModelSettings, *, weight: float) -> None:
        self._settings = settings
        self._weight = weight
        self._network: SASRec | None = None
        self._known_R = torch.zeros(0, dtype=torch.bool)

    def cost(self, network: SASRec, seen: Seen, *, rng: np.random.Generator) -> Tensor | None:
        """Nothing without an accepted network or without replayed sequences."""
        if self._network is None or not seen.replayed:
            return None
        accepted = self.answers(seen.replayed)
        candidate_C = self._candidates(seen.positions, rng)
        if not len(accepted.hidden_AD) or not len(candidate_C):
            return None
        present_AD = seen.positions.hidden_PD[-len(accepted.given_P) :][accepted.given_P]
        accepted_AC = accepted.hidden_AD @ self._network.item_RD[candidate_C].T
        item_CD = functional.embedding(candidate_C, network.item_RD, padding_idx=PADDING, sparse=True)
        return self._weight * divergence(accepted_AC, present_AD @ item_CD.T)

    @torch.no_grad()
    def answers(self, replayed: Sequence[Group]) -> Answers:
        """Of the accepted network, group after group; something was accepted."""
        assert self._network is not None, "nothing was accepted yet"
        asked = [self._asked(group) for group in replayed]
        hidden = [targets_of(self._network, group, None)[0] for group in asked]
        given = [
            asked_of.target_BT[group.target_BT != PADDING] != PADDING
            for group, asked_of in zip(replayed, asked, strict=True)
        ]
        return Answers(torch.cat(hidden), torch.cat(given).to(self._network.device))

    def _asked(self, group: Group) -> Group:
        """The same without targets from the first item on that the accepted network does not know.

        What stands there instead is of no account: no position sees those after it, and each keeps its place.
        """
        known_R = self._known_R.cpu()
        row_BT = group.row_BT.clamp(max=len(known_R) - 1)
        is_known_BT = (row_BT == PADDING) | ((row_BT == group.row_BT) & known_R[row_BT])
        target_BT = group.target_BT.where(is_known_BT.cummin(dim=1).values, PADDING)
        return group._replace(row_BT=row_BT, target_BT=target_BT)

    def _candidates(self, positions: Positions, rng: np.random.Generator) -> Int[Tensor, " C"]:
        """Distinct rows whose items the accepted network knew."""
        rows = [positions.target_P]
        if positions.negative is not None and positions.negative.ndim == 1:
            rows.append(positions.negative[:CANDIDATES])
        elif positions.items <= CANDIDATES:
            rows.append(_items_of(positions))
        else:
            drawn = torch.from_numpy(rng.integers(positions.items, size=CANDIDATES))
            rows.append(_items_of(positions)[drawn.to(positions.target_P.device)])
        row_C = torch.from_numpy(np.unique(torch.cat(rows).cpu().numpy())).to(self._known_R.device)
        row_C = row_C[row_C < len(self._known_R)]
        known_C: Tensor = row_C[self._known_R[row_C]]
        return known_C

    def accept(self, network: SASRec, optimiser: RowAdam, *, rows: int) -> None:  # noqa: ARG002 - of the interface
        """A copy of the weights."""
        self._take({name: tensor.clone() for name, tensor in network.tensors(rows=rows).items()}, device=network.device)
        self._known_R = torch.ones(rows, dtype=torch.bool, device=network.device)
        self._known_R[PADDING] = False

    def forget(self, rows_F: Int[np.ndarray, " F"]) -> None:
        """Their items are no candidates."""
        rows = torch.from_numpy(rows_F[rows_F < len(self._known_R)])
        self._known_R[rows.to(self._known_R.device)] = False

    def tensors(self) -> Mapping[str, Tensor]:
        """The accepted weights."""
        if self._network is None:
            return {}
        return self._network.tensors(rows=self._network.capacity) | {KNOWN: self._known_R}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, device: torch.device) -> None:
        """An empty mapping changes nothing."""
        if not tensors:
            return
        self._take({name: tensor for name, tensor in tensors.items() if name != KNOWN}, device=device)
        self._known_R = tensors[KNOWN].bool().to(device)

    def _take(self, weights: Mapping[str, Tensor], *, device: torch.device) -> None:
        network = SASRec.from_tensors(self._settings, weights, capacity=len(weights["item_RD"]))
        self._network = network.to(device).requires_grad_(requires_grad=False)


def _items_of(positions: Positions) -> Int[Tensor, " N"]:
    """Every row that holds an item."""
    if positions.live_N is not None:
        return positions.live_N
    return torch.arange(PADDING + 1, positions.size, device=positions.target_P.device)


def divergence(accepted_AC: Float[Tensor, "A C"], present_AC: Float[Tensor, "A C"]) -> Float[Tensor, ""]:
    """Mean over positions of the Kullback-Leibler divergence of the present distribution from the accepted one."""
    mean = functional.kl_div(
        present_AC.log_softmax(dim=1), accepted_AC.log_softmax(dim=1), reduction="batchmean", log_target=True
    )
    # The sum of two equal distributions' terms rounds to either side of its lower bound.
    return mean.clamp_min(0.0)
