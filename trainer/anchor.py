"""Elastic weight consolidation: weights that mattered for what was accepted are hard to move (Kirkpatrick et al. 2017).

`L = weight / 2 * sum_i F_i (theta_i - theta*_i)^2`, where F is the diagonal Fisher information of one position. Adam's
second moment is the mean square of a micro-batch's gradient; near an optimum that is F over the number of positions P
of the batch, so F is taken as P times it, and no pass over old data is needed. A `weight` of 1 means: what was accepted
rests on as many positions as what is learnt now. Of the item table only the rows that a step touches are held.
Shapes: R rows of the table at acceptance, U rows touched, D units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING
from model.optimiser import RowAdam
from model.sasrec import SASRec
from trainer.remembering import Seen

TABLE = "item_RD"
WEIGHT = "weight."
IMPORTANCE = "importance."


class Anchor:
    """The last accepted weights, and how much each of them mattered."""

    name = "anchor."

    def __init__(self, *, weight: float) -> None:
        self._weight = weight
        self._accepted: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}

    def cost(self, network: SASRec, seen: Seen, *, rng: np.random.Generator) -> Tensor | None:  # noqa: ARG002 - of the interface
        """Nothing before anything was accepted."""
        if not self._accepted:
            return None
        moved = [
            torch.sum(self._importance[name] * (weight - self._accepted[name]).square())
            for name, weight in network.named_parameters()
            if name != TABLE
        ]
        row_U = self._rows(seen).to(network.device)
        row_UD = functional.embedding(row_U, network.item_RD, padding_idx=PADDING, sparse=True)
        moved.append(torch.sum(self._importance[TABLE][row_U] * (row_UD - self._accepted[TABLE][row_U]).square()))
        return self._weight / 2 * len(seen.positions.target_P) * torch.stack(moved).sum()

    def _rows(self, seen: Seen) -> Int[Tensor, " U"]:
        """Of inputs, targets and negatives, those that there were at acceptance."""
        rows = [group.row_BT.flatten() for group in seen.groups] + [seen.positions.target_P.cpu()]
        if seen.positions.negative is not None:
            rows.append(seen.positions.negative.flatten().cpu())
        row_U = np.unique(torch.cat(rows).numpy())
        return torch.from_numpy(row_U[row_U < len(self._accepted[TABLE])])

    def accept(self, network: SASRec, optimiser: RowAdam, *, rows: int) -> None:
        """Copies of the weights and of Adam's second moments."""
        second = optimiser.tensors(rows=rows)
        self._accepted = {name: tensor.clone() for name, tensor in network.tensors(rows=rows).items()}
        self._importance = {
            name: second["table.second_RD" if name == TABLE else f"dense.exp_avg_sq.{name}"].clone()
            for name in self._accepted
        }

    def forget(self, rows_F: Int[np.ndarray, " F"]) -> None:
        """Rows of other items move freely."""
        if self._importance:
            rows = torch.from_numpy(rows_F[rows_F < len(self._importance[TABLE])])
            self._importance[TABLE][rows.to(self._importance[TABLE].device)] = 0.0

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights and what each is worth."""
        weights = {WEIGHT + name: tensor for name, tensor in self._accepted.items()}
        return weights | {IMPORTANCE + name: tensor for name, tensor in self._importance.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Becomes what gave `tensors`, where the network is."""
        self._accepted, self._importance = (
            {
                name.removeprefix(kind): tensor.to(device).clone()
                for name, tensor in tensors.items()
                if name.startswith(kind)
            }
            for kind in (WEIGHT, IMPORTANCE)
        )
