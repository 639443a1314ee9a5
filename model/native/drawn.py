"""What drawn items that all positions share cost, as a differentiable function of torch.

Shapes: P positions, K drawn items, D units, R rows of the item table.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.native.full_softmax import softens_natively
from model.native.functions import kernels
from model.native.library import ManySoftmaxCall, address
from model.native.rows import merged
from model.one_thread import weighted_sum


class Cost(enum.IntEnum):
    """As `ManySoftmaxCall.cost` says it."""

    SOFTMAX = 0
    SUM = 1
    MEAN = 2


class Drawn(NamedTuple):
    """Items that stand beside every target but the one that is the same item; PADDING is none."""

    row_K: Int[Tensor, " K"]
    log_q_K: Float[Tensor, " K"] | None = None
    """Natural logarithm of each one's chance to be drawn, for softmax."""
    cost: Cost = Cost.SOFTMAX


class Wanted(NamedTuple):
    """What came next at each position, and how much it counts."""

    row_P: Int[Tensor, " P"]
    weight_P: Float[Tensor, " P"]


def draws_natively(item_RD: Float[Tensor, "R D"], row: Tensor) -> bool:
    """Whether the kernel can do these drawn items."""
    is_shared = row.ndim == 1 and row.device == item_RD.device
    return is_shared and softens_natively(item_RD[: len(row)], torch.float32) and item_RD.is_contiguous()


def native_drawn_softmax(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    score_P: Float[Tensor, " P"],
    *,
    wanted: Wanted,
    drawn: Drawn,
) -> Float[Tensor, ""]:
    """`sum_p w_p (ln(e^s_p + sum_j e^s_pj / (K_p q_j)) - s_p)`, j over those of the K_p drawn ones that count.

    `score_P` are the targets' own scores. The gradient of the items is sparse, each row in it once.
    """
    loss: Tensor = _Against.apply(hidden_PD, item_RD, score_P, wanted, drawn)
    return loss


def native_drawn_softplus(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    level_P: Float[Tensor, " P"],
    *,
    wanted: Wanted,
    drawn: Drawn,
) -> Float[Tensor, ""]:
    """`sum_p w_p sum_j softplus(s_pj - level_p)`, or the mean, as `drawn.cost` says; j over what counts."""
    loss: Tensor = _Against.apply(hidden_PD, item_RD, level_P, wanted, drawn)
    return loss


class _Against(torch.autograd.Function):
    """The gradients are made in the forward pass, while the scores are in the cache."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        hidden_PD: Tensor,
        item_RD: Tensor,
        level_P: Tensor,
        wanted: Wanted,
        drawn: Drawn,
    ) -> Tensor:
        """The loss; keeps its gradients."""
        hidden_PD, level_P, item_KD = hidden_PD.contiguous(), level_P.contiguous(), item_RD[drawn.row_K]
        target_P, weight_P, row_K = (one.contiguous() for one in (*wanted, drawn.row_K))
        log_q_K = None if drawn.log_q_K is None else drawn.log_q_K.contiguous()
        assert len(hidden_PD) == len(target_P) == len(weight_P) == len(level_P)
        loss_P, level_gradient_P = torch.empty_like(weight_P), torch.empty_like(level_P)
        hidden_gradient_PD, item_gradient_KD = torch.empty_like(hidden_PD), torch.zeros_like(item_KD)
        found = kernels()
        assert found is not None, "ask `draws_natively` first"
        found.many_softmax(
            ManySoftmaxCall(
                positions=len(hidden_PD),
                items=len(item_KD),
                units=item_KD.shape[1],
                threads=torch.get_num_threads(),
                cost=drawn.cost,
                hidden=address(hidden_PD),
                table=address(item_KD),
                targets=address(target_P, torch.int64),
                weights=address(weight_P),
                rows=address(row_K, torch.int64),
                discounts=None if log_q_K is None else address(log_q_K),
                levels=address(level_P),
                losses=address(loss_P),
                hidden_gradient=address(hidden_gradient_PD),
                item_gradient=address(item_gradient_KD),
                level_gradient=address(level_gradient_P),
            )
        )
        ctx.save_for_backward(hidden_gradient_PD, *merged(row_K, item_gradient_KD), level_gradient_P)
        ctx.shape = item_RD.shape
        return weighted_sum(loss_P, weight_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        """For hidden states, items and levels."""
        hidden_PD, row_U, item_UD, level_P = ctx.saved_tensors
        item_RD = torch.sparse_coo_tensor(
            row_U[None], item_UD * given, ctx.shape, check_invariants=False, is_coalesced=True
        )
        return hidden_PD * given, item_RD, level_P * given, None, None
