"""Adam whose cost follows the rows that a step touches, not the catalogue.

Shapes: R rows of the item table, U rows touched by a step, D units.

The dense weights are learnt by torch's fused AdamW. A row of the item table is updated only in a step that touches it
(where its gradient is given), with moments first decayed for the steps it sat out. Against dense AdamW on the same
gradients that is

- the same, to rounding, for a row touched in every step since it began, and
- for a row that sat out: the same moments, but without the glide that dense Adam's momentum would have made meanwhile:
  the length of its last step times `r / (1 - r)` at most, `r = 0.9 / 0.999 ** 0.5`, which is 9.05, and most of it in
  the ten steps after the last gradient. That step is about one learning rate long where gradients are as they were,
  `0.1 / 0.001 ** 0.5` (3.16) after one gradient out of a long silence, and never above `LONGEST_STEP` (7.27, by
  Cauchy and Schwarz); so the glide is at most 9, 29 and 66 learning rates.
- Weight decay for the steps that were sat out is made up for in the next one that touches the row, at the rate of that
  step: exact where the rate stays, and off by what the rate changed meanwhile where it does not (as in
  `trainer/passes.py`).

A row's bias correction counts from when the row began (`reset_rows`): a new item takes first steps of ordinary length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import get_total_norm

from model.native.rows import Rates, RowState, adam_rows, learns_natively, merged
from model.sasrec import SASRec

BETAS = (0.9, 0.999)
EPSILON = 1e-8
LONGEST_STEP = (1 - BETAS[0]) / math.sqrt((1 - BETAS[1]) * (1 - BETAS[0] ** 2 / BETAS[1]))
"""In learning rates, whatever the gradients."""
TABLE = "item_RD"


class _Rows(NamedTuple):
    """The gradient of the item table: the rows touched and what each got."""

    rows_U: Int[Tensor, " U"]
    gradient_UD: Float[Tensor, "U D"]


class RowAdam:
    """Adam for a whole SASRec; all its state is in `tensors`.

    `learning_rate` may be set anew between steps. Gradients longer than `max_norm` (L2, all weights together) are
    shortened to it; `weight_decay` is decoupled (Loshchilov & Hutter 2019).
    """

    def __init__(
        self, model: SASRec, *, learning_rate: float, max_norm: float = math.inf, weight_decay: float = 0.0
    ) -> None:
        self.learning_rate = learning_rate
        self._model = model
        self._max_norm = max_norm
        self._weight_decay = weight_decay
        self._dense = {name: weight for name, weight in model.named_parameters() if name != TABLE}
        self._adam = torch.optim.AdamW(
            self._dense.values(),
            lr=learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=weight_decay,
            fused=True,
        )
        self.steps = 0
        # First and second moments of a row side by side: one place in memory to look for, and not two.
        self._moments_R2D = model.item_RD.new_zeros(model.capacity, 2, model.settings.units)
        self._began_R = torch.zeros(model.capacity, dtype=torch.int64, device=model.device)
        self._touched_R = torch.zeros(model.capacity, dtype=torch.int64, device=model.device)

    @torch.no_grad()
    def step(self) -> float:
        """Learns from the gradients and clears them; returns their norm before it was shortened.

        A norm that is not finite means that nothing was changed.
        """
        table = self._table_gradient()
        dense = [weight.grad for weight in self._dense.values() if weight.grad is not None]
        norm = float(get_total_norm([*dense, table.gradient_UD]))
        if math.isfinite(norm):
            self._shorten([*dense, table.gradient_UD], norm)
            self._learn(table)
        self._model.zero_grad(set_to_none=True)
        return norm

    def grow(self) -> None:
        """Follows `SASRec.grow`; the state of known rows stays bit for bit."""
        missing = self._model.capacity - len(self._began_R)
        self._moments_R2D = functional.pad(self._moments_R2D, (0, 0, 0, 0, 0, missing))
        self._began_R = functional.pad(self._began_R, (0, missing))
        self._touched_R = functional.pad(self._touched_R, (0, missing))

    def reset_rows(self, rows_F: Int[np.ndarray, " F"]) -> None:
        """Forgets what is known of rows that begin afresh."""
        rows = torch.from_numpy(rows_F).to(self._model.device)
        self._moments_R2D[rows] = 0.0
        self._began_R[rows] = self.steps
        self._touched_R[rows] = self.steps

    def rows_changed_since(self, steps: int, *, rows: int) -> Int[Tensor, " U"]:
        """Rows, of the first `rows`, that a step after the first `steps` touched or that began afresh since."""
        changed_R = (self._touched_R > steps) | (self._began_R >= steps)
        return changed_R[:rows].nonzero()[:, 0]

    def tensors(self, *, rows: int) -> dict[str, Tensor]:
        """The state for a checkpoint, with the first `rows` rows of the item table."""
        tensors = {
            "steps": torch.tensor(self.steps),
            "table.first_RD": self._moments_R2D[:rows, 0].contiguous(),
            "table.second_RD": self._moments_R2D[:rows, 1].contiguous(),
            "table.began_R": self._began_R[:rows],
            "table.touched_R": self._touched_R[:rows],
        }
        for name, weight in self._dense.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"dense.{moment}.{name}"] = self._adam.state[weight].get(moment, torch.zeros_like(weight))
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Becomes the optimiser that gave `tensors`, for the same model."""
        self.steps = int(tensors["steps"])
        stored = torch.stack((tensors["table.first_RD"], tensors["table.second_RD"]), dim=1)
        self._moments_R2D = self._padded(stored)
        self._began_R, self._touched_R = (
            self._padded(tensors["table.began_R"]),
            self._padded(tensors["table.touched_R"]),
        )
        for name, weight in self._dense.items():
            moments = {m: tensors[f"dense.{m}.{name}"].to(weight.device).clone() for m in ("exp_avg", "exp_avg_sq")}
            self._adam.state[weight] = {"step": torch.tensor(float(self.steps), device=weight.device), **moments}

    def _padded(self, stored: Tensor) -> Tensor:
        missing = self._model.capacity - stored.shape[0]
        return functional.pad(stored, (0, 0) * (stored.ndim - 1) + (0, missing)).to(self._model.device)

    def _table_gradient(self) -> _Rows:
        gradient = self._model.item_RD.grad
        if gradient is None:
            return _Rows(self._touched_R[:0], self._moments_R2D[:0, 0])
        if not gradient.is_sparse:
            return _Rows(torch.arange(gradient.shape[0], device=gradient.device), gradient)
        if gradient.is_coalesced() or not learns_natively(self._model.item_RD):
            gradient = gradient.coalesce()
            return _Rows(gradient.indices()[0], gradient.values())
        row_N, value_ND = gradient._indices()[0], gradient._values()  # noqa: SLF001 - as they are, not coalesced
        return _Rows(*merged(row_N, value_ND))

    def _shorten(self, gradients: list[Tensor], norm: float) -> None:
        if norm > self._max_norm:
            torch._foreach_mul_(gradients, self._max_norm / norm)

    def _learn(self, table: _Rows) -> None:
        self.steps += 1
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate
        self._adam.step()
        self._learn_rows(table.rows_U, table.gradient_UD)

    def _learn_rows(self, rows_U: Tensor, gradient_UD: Tensor) -> None:
        if learns_natively(self._model.item_RD):
            state = RowState(self._model.item_RD, self._moments_R2D, self._began_R, self._touched_R)
            rates = Rates(self.learning_rate, *BETAS, EPSILON, self._weight_decay)
            adam_rows(state, row_U=rows_U, gradient_UD=gradient_UD, steps=self.steps, rates=rates)
        else:
            self._learn_rows_by_torch(rows_U, gradient_UD)

    def _learn_rows_by_torch(self, rows_U: Tensor, gradient_UD: Tensor) -> None:
        """The definition of what the native kernel does."""
        beta1, beta2 = BETAS
        kind = gradient_UD.dtype
        # In float64, for 1 - 0.999 ** age loses four digits in float32.
        missed_U1 = (self.steps - self._touched_R[rows_U])[:, None].double()
        age_U1 = (self.steps - self._began_R[rows_U])[:, None].double()
        first_UD = self._moments_R2D[rows_U, 0].mul_((beta1**missed_U1).to(kind)).add_(gradient_UD, alpha=1 - beta1)
        second_UD = self._moments_R2D[rows_U, 1].mul_((beta2**missed_U1).to(kind))
        second_UD.addcmul_(gradient_UD, gradient_UD, value=1 - beta2)
        self._moments_R2D[rows_U] = torch.stack((first_UD, second_UD), dim=1)
        self._touched_R[rows_U] = self.steps
        scale_UD = second_UD.sqrt_().mul_((1 - beta2**age_U1).rsqrt_().to(kind)).add_(EPSILON)
        first_UD.mul_((self.learning_rate / (1 - beta1**age_U1)).to(kind))
        kept_U1 = (1 - self.learning_rate * self._weight_decay) ** missed_U1
        row_UD = self._model.item_RD[rows_U].mul_(kept_U1.to(kind))
        self._model.item_RD[rows_U] = row_UD.addcdiv_(first_UD, scale_UD, value=-1.0)
