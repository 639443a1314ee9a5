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
        total = hidden_PD.new_zeros(())
        height = max(SMALLEST_CHUNK, CHUNK_SCORES // max(1, len(item_ND)))
        for start in range(0, len(target_P), height):
            chunk = slice(start, start + height)
            score_CN = (factor_PD[chunk] @ item_ND.T).to(hidden_PD.dtype)
            column_C1 = target_P[chunk, None] - (PADDING + 1)
            total += torch.dot(_cross_entropy(score_CN, column_C1), weight_P[chunk])
            # The scores have become probabilities; with one off the target's they are the gradient.
            score_CN.mul_(weight_P[chunk, None]).scatter_add_(1, column_C1, -weight_P[chunk, None])
            share_CN = score_CN.to(kind)
            gradients.hidden_PD[chunk] = share_CN @ item_ND
            gradients.item_RD[PADDING + 1 : size] += share_CN.T @ factor_PD[chunk]
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


def _cross_entropy(score_CN: Tensor, column_C1: Tensor) -> Tensor:
    """The loss of each position; turns the scores into probabilities in place."""
    score_CN -= score_CN.amax(dim=1, keepdim=True)
    target_C = score_CN.gather(1, column_C1)[:, 0]
    sum_C = score_CN.exp_().sum(dim=1)
    score_CN.div_(sum_C[:, None])
    return sum_C.log_() - target_C
