"""Cross-entropy over the whole catalogue without positions x items in memory.

The gradient is made in the forward pass: a chunk of scores becomes the loss and its gradient while it is in the cache,
and is forgotten. Backward only multiplies. Shapes: P positions, C positions of a chunk, D units, R rows, N items.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.catalogue import PADDING
from model.native.functions import native_softmax_gradients, runs_natively

CHUNK_SCORES = 1 << 19
"""Scores held at once (2 MiB in float32)."""
SMALLEST_CHUNK = 16


class _Gradients(NamedTuple):
    hidden_PD: Tensor
    item_RD: Tensor


class _Over(NamedTuple):
    """Rows in use, and the kind of number that products are made of."""

    size: int
    kind: torch.dtype


class FullSoftmax(torch.autograd.Function):
    """`sum_p w_p (ln sum_j e^s_pj - s_pi)`, j over rows 1 to `size` - 1."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        hidden_PD: Tensor,
        item_RD: Tensor,
        target_P: Tensor,
        weight_P: Tensor,
        over: _Over,
    ) -> Tensor:
        """The loss; keeps its gradient with respect to hidden states and items."""
        gradients = _Gradients(torch.empty_like(hidden_PD), torch.zeros_like(item_RD))
        size, kind = over
        item_ND, factor_PD = item_RD[PADDING + 1 : size].to(kind), hidden_PD.to(kind)
        column_P, weight_P = target_P - (PADDING + 1), weight_P.contiguous()
        total = weight_P.new_zeros(())
        height = max(SMALLEST_CHUNK, CHUNK_SCORES // max(1, len(item_ND)))
        room_CN = factor_PD.new_empty(min(height, len(target_P)), len(item_ND))
        learn = native_softmax_gradients if runs_natively(item_RD, heads=1) else _softmax_gradients
        for start in range(0, len(target_P), height):
            chunk = slice(start, start + height)
            score_CN = torch.mm(factor_PD[chunk], item_ND.T, out=room_CN[: len(column_P[chunk])])
            loss_C = learn(score_CN, target_C=column_P[chunk], weight_C=weight_P[chunk])
            total += torch.dot(loss_C, weight_P[chunk])
            gradients.hidden_PD[chunk] = score_CN @ item_ND
            gradients.item_RD[PADDING + 1 : size] += score_CN.T @ factor_PD[chunk]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401 - as above
        """The gradient that is known already, times what comes from above."""
        hidden_PD, item_RD = ctx.saved_tensors
        return hidden_PD * gradient, item_RD * gradient, None, None, None


def full_cross_entropy(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    *,
    target_P: Int[Tensor, " P"],
    weight_P: Float[Tensor, " P"],
    size: int,
    kind: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """The weighted sum over positions of the cross-entropy of each target among rows 1 to `size` - 1.

    `kind` is what the factors of the three products are rounded to (None: nothing is rounded); sums, exponentials and
    the loss keep the kind of the hidden states.
    """
    loss: Tensor = FullSoftmax.apply(hidden_PD, item_RD, target_P, weight_P, _Over(size, kind or hidden_PD.dtype))
    return loss


def _softmax_gradients(score_CN: Tensor, *, target_C: Tensor, weight_C: Tensor) -> Tensor:
    """The loss of each position; scores become `weight * (probability - [is target])` in place."""
    power_CN = score_CN.to(weight_C.dtype, copy=True)
    power_CN -= power_CN.amax(dim=1, keepdim=True)
    target_C1 = target_C[:, None]
    target_score_C = power_CN.gather(1, target_C1)[:, 0]
    sum_C = power_CN.exp_().sum(dim=1)
    power_CN.mul_((weight_C / sum_C)[:, None]).scatter_add_(1, target_C1, -weight_C[:, None])
    score_CN.copy_(power_CN)
    return sum_C.log_() - target_score_C
