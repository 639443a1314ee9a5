"""Gradients of a table's rows, added up row by row, and Adam on the rows that a step touches.

Shapes: N entries, U different rows among them, D units, R rows of the table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.native.functions import kernels
from model.native.library import AdamCall, Kernels, MergeCall, SortCall, address

MOST_ENTRIES = 1 << 31
MOST_ROWS = 1 << 32


class SortedRows(NamedTuple):
    """Where each row stands among N entries; PADDING is no row."""

    order_N: Int[Tensor, " N"]
    """int32: entries of the first row as they came, then those of the second; what is behind them means nothing."""
    row_U: Int[Tensor, " U"]
    """Ascending."""
    start: Int[Tensor, " U+1"]
    """Where in `order_N` the entries of each row begin, and at last where they end."""


class Rates(NamedTuple):
    """What Adam needs to know besides the tensors."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    decay: float


class RowState(NamedTuple):
    """A table and what Adam remembers of it; changed in place."""

    table_RD: Float[Tensor, "R D"]
    moments_R2D: Float[Tensor, "R 2 D"]
    began_R: Int[Tensor, " R"]
    touched_R: Int[Tensor, " R"]


def learns_natively(table_RD: Tensor) -> bool:
    """Whether the kernels can learn the rows of this table."""
    is_fitting = table_RD.device.type == "cpu" and table_RD.dtype == torch.float32 and len(table_RD) < MOST_ROWS
    return is_fitting and table_RD.is_contiguous() and kernels() is not None


def sorted_rows(row_N: Int[Tensor, " N"]) -> SortedRows:
    """In time that follows the entries, not the table."""
    assert len(row_N) < MOST_ENTRIES
    row_N = row_N.contiguous()
    order_N = torch.empty(len(row_N), dtype=torch.int32)
    row_U, start = torch.empty_like(row_N), torch.empty(len(row_N) + 1, dtype=torch.int64)
    unique = _kernels().sort_rows(
        SortCall(
            entries=len(row_N),
            padding=PADDING,
            rows=address(row_N, torch.int64),
            order=address(order_N, torch.int32),
            unique=address(row_U, torch.int64),
            starts=address(start, torch.int64),
        )
    )
    return SortedRows(order_N, row_U[:unique], start[: unique + 1])


def merged(row_N: Int[Tensor, " N"], value_ND: Float[Tensor, "N D"]) -> tuple[Int[Tensor, " U"], Float[Tensor, "U D"]]:
    """Values of equal rows added up in the order in which they came; rows ascend, PADDING is left out."""
    found = sorted_rows(row_N)
    value_ND = value_ND.contiguous()
    sum_UD = value_ND.new_empty(len(found.row_U), value_ND.shape[1])
    _kernels().merge_rows(
        MergeCall(
            unique=len(found.row_U),
            units=value_ND.shape[1],
            threads=torch.get_num_threads(),
            order=address(found.order_N, torch.int32),
            starts=address(found.start, torch.int64),
            values=address(value_ND),
            sums=address(sum_UD),
        )
    )
    return found.row_U, sum_UD


def adam_rows(
    state: RowState, *, row_U: Int[Tensor, " U"], gradient_UD: Float[Tensor, "U D"], steps: int, rates: Rates
) -> None:
    """One step of the rows, all different; each catches up with the steps that it sat out."""
    row_U, gradient_UD = row_U.contiguous(), gradient_UD.contiguous()
    _kernels().adam_rows(
        AdamCall(
            touched=len(row_U),
            units=gradient_UD.shape[1],
            threads=torch.get_num_threads(),
            steps=steps,
            table_rows=len(state.table_RD),
            **rates._asdict(),
            rows=address(row_U, torch.int64),
            gradient=address(gradient_UD),
            table=address(state.table_RD),
            moments=address(state.moments_R2D),
            began=address(state.began_R, torch.int64),
            last=address(state.touched_R, torch.int64),
        )
    )


def _kernels() -> Kernels:
    found = kernels()
    assert found is not None, "ask `learns_natively` first"
    return found
