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
from model.checked import check_kinds, existing_rows
from model.native.full_softmax import Gradients, native_full_softmax, softens_natively
from model.native.functions import kernels, native_softmax_gradients, runs_natively
from model.one_thread import one_thread, weighted_sum

CHUNK_SCORES = 1 << 19
"""Scores held at once (2 MiB in float32)."""
SMALLEST_CHUNK = 16


def fastest_products(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it itself and so faster, else float32."""
    if device.type == "cuda":
        has_short_products = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = kernels()
        has_short_products = found is not None and found.has_short_products
    return torch.bfloat16 if has_short_products else torch.float32


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
        size, kind = over
        gradients = Gradients(torch.empty_like(hidden_PD), torch.zeros_like(item_RD))
        items = slice(PADDING + 1, size)
        learn = native_full_softmax if softens_natively(item_RD[items], kind) else _learn
        total = learn(
            hidden_PD,
            item_RD[items],
            target_P=target_P - items.start,
            weight_P=weight_P,
            kind=kind,
            to=Gradients(gradients.hidden_PD, gradients.item[items]),
        )
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

    Raises:
        TypeError: rows that are no whole numbers, or items of another kind than hidden states.
        IndexError: a target that is none of these rows.
    """
    check_kinds(hidden_PD, item_RD)
    target_P = existing_rows(target_P, first=PADDING + 1, end=min(size, len(item_RD)))
    weight_P, over = weight_P.to(hidden_PD.dtype), _Over(size, kind or hidden_PD.dtype)
    loss: Tensor = FullSoftmax.apply(hidden_PD, item_RD, target_P, weight_P, over)
    return loss


@one_thread()
def _learn(
    hidden_PD: Tensor, item_ND: Tensor, *, target_P: Tensor, weight_P: Tensor, to: Gradients, kind: torch.dtype
) -> Tensor:
    """The loss, chunk by chunk; its gradients go to `to`."""
    native = runs_natively(item_ND, heads=1) and kind in {torch.float32, torch.bfloat16}
    factor_ND, factor_PD = item_ND.to(kind), hidden_PD.to(kind)
    target_P, weight_P = target_P.contiguous(), weight_P.contiguous()
    total = weight_P.new_zeros(())
    height = max(SMALLEST_CHUNK, CHUNK_SCORES // max(1, len(item_ND)))
    room_CN = factor_PD.new_empty(min(height, len(target_P)), len(item_ND))
    soften = native_softmax_gradients if native else _softmax_gradients
    for start in range(0, len(target_P), height):
        chunk = slice(start, start + height)
        score_CN = torch.mm(factor_PD[chunk], factor_ND.T, out=room_CN[: len(target_P[chunk])])
        loss_C = soften(score_CN, target_C=target_P[chunk], weight_C=weight_P[chunk])
        total += weighted_sum(loss_C, weight_P[chunk])
        to.hidden_PD[chunk] = score_CN @ factor_ND
        to.item.add_(score_CN.T @ factor_PD[chunk])
    return total


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
