"""Knowledge distillation: on replayed sequences a step is to predict what the last accepted weights predicted.

`L = weight * mean_p KL(softmax(t_p) || softmax(s_p))` (Hinton et al. 2015; on exemplars alone, as in ADER, Mi et al.
2020), where t and s are the scores of the accepted and the present weights over the items of the step: its targets and
its shared negatives, or all items where these are no more. Shapes: P replayed positions, C candidates, D units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING
from model.losses import Positions
from model.optimiser import RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings
from trainer.remembering import Seen
from trainer.step import targets_of

CANDIDATES = 4_096
"""Most items, besides the targets, over which predictions are compared."""
KNOWN = "known_R"


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
        with torch.no_grad():
            accepted_PD = torch.cat([targets_of(self._network, group, None)[0] for group in seen.replayed])
        candidate_C = self._candidates(seen.positions, rng)
        if not len(accepted_PD) or not len(candidate_C):
            return None
        present_PD = seen.positions.hidden_PD[-len(accepted_PD) :]
        accepted_PC = accepted_PD @ self._network.item_RD[candidate_C].T
        item_CD = functional.embedding(candidate_C, network.item_RD, padding_idx=PADDING, sparse=True)
        return self._weight * divergence(accepted_PC, present_PD @ item_CD.T)

    def _candidates(self, positions: Positions, rng: np.random.Generator) -> Int[Tensor, " C"]:
        """Distinct rows whose items the accepted network knew."""
        rows = [positions.target_P]
        if positions.negative is not None and positions.negative.ndim == 1:
            rows.append(positions.negative[:CANDIDATES])
        elif positions.size - 1 <= CANDIDATES:
            rows.append(torch.arange(PADDING + 1, positions.size, device=positions.target_P.device))
        else:
            drawn = rng.integers(PADDING + 1, positions.size, size=CANDIDATES)
            rows.append(torch.from_numpy(drawn).to(positions.target_P.device))
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


def divergence(accepted_PC: Float[Tensor, "P C"], present_PC: Float[Tensor, "P C"]) -> Float[Tensor, ""]:
    """Mean over positions of the Kullback-Leibler divergence of the present distribution from the accepted one."""
    mean = functional.kl_div(
        present_PC.log_softmax(dim=1), accepted_PC.log_softmax(dim=1), reduction="batchmean", log_target=True
    )
    # The sum of two equal distributions' terms rounds to either side of its lower bound.
    return mean.clamp_min(0.0)
