"""Scores of positions against choices of their own, as a differentiable function of torch.

Shapes: P positions, C choices of each, D units, R rows of the item table.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.native.functions import kernels
from model.native.library import Kernels, ScoresCall, address
from model.native.rows import sorted_rows


def native_scores(
    hidden_PD: Float[Tensor, "P D"], item_RD: Float[Tensor, "R D"], row_PC: Int[Tensor, "P C"]
) -> Float[Tensor, "P C"]:
    """`hidden_p . item[row_pc]`; the gradient of the items is sparse, each row in it once and PADDING not at all."""
    score_PC: Tensor = _Scores.apply(hidden_PD, item_RD, row_PC)
    return score_PC


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, item_RD: Tensor, row_PC: Tensor) -> Tensor:  # noqa: ANN401 - torch gives it no type
        """P x C."""
        hidden_PD, row_PC = hidden_PD.contiguous(), row_PC.contiguous()
        score_PC = hidden_PD.new_empty(row_PC.shape)
        call = _call(hidden_PD, item_RD, row_PC)
        call.scores = address(score_PC)
        _kernels().scores_forward(call)
        ctx.save_for_backward(hidden_PD, item_RD, row_PC)
        return score_PC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given_PC: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401 - as above
        """For hidden states and items."""
        hidden_PD, item_RD, row_PC = ctx.saved_tensors
        found = sorted_rows(row_PC.flatten())
        given_PC = given_PC.contiguous()
        hidden_gradient_PD = torch.empty_like(hidden_PD)
        gradient_UD = hidden_PD.new_empty(len(found.row_U), hidden_PD.shape[1])
        call = _call(hidden_PD, item_RD, row_PC)
        call.unique, call.given = len(found.row_U), address(given_PC)
        call.order, call.starts = address(found.order_N, torch.int32), address(found.start, torch.int64)
        call.hidden_gradient, call.item_gradient = address(hidden_gradient_PD), address(gradient_UD)
        _kernels().scores_backward(call)
        item_gradient_RD = torch.sparse_coo_tensor(
            found.row_U[None], gradient_UD, item_RD.shape, check_invariants=False, is_coalesced=True
        )
        return hidden_gradient_PD, item_gradient_RD, None


def _call(hidden_PD: Tensor, item_RD: Tensor, row_PC: Tensor) -> ScoresCall:
    assert len(hidden_PD) == len(row_PC)
    assert hidden_PD.shape[1] == item_RD.shape[1]
    return ScoresCall(
        positions=row_PC.shape[0],
        choices=row_PC.shape[1],
        units=hidden_PD.shape[1],
        threads=torch.get_num_threads(),
        table_rows=len(item_RD),
        hidden=address(hidden_PD),
        items=address(item_RD),
        rows=address(row_PC, torch.int64),
    )


def _kernels() -> Kernels:
    found = kernels()
    assert found is not None, "ask `learns_natively` first"
    return found
