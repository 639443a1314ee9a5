"""The hidden state at the newest item of every sequence, for prediction alone: the whole network in one call.

Shapes: B sequences, P positions of all of them one after another, D units, R rows of the item table, T positions that
the network knows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.native.functions import kernels
from model.native.library import NewestCall, address, addresses_of_blocks


class Weights(NamedTuple):
    """Of a network; those of a block in the order of `enum Weight` in weights.h."""

    item_RD: Float[Tensor, "R D"]
    position_TD: Float[Tensor, "T D"]
    blocks: Sequence[Sequence[Tensor]]
    final_norm: tuple[Tensor, Tensor] | None
    heads: int
    is_pre_norm: bool
    item_scale: float


def newest_natively(weights: Weights, *, row_P: Int[Tensor, " P"], length_B: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """Zero for an empty sequence. The gradient is not known."""
    found = kernels()
    assert found is not None, "ask `runs_natively` first"
    units = weights.item_RD.shape[1]
    output_BD = torch.zeros(len(length_B), units)
    row_P, length_B = row_P.contiguous(), length_B.contiguous()
    norm_weight, norm_bias = weights.final_norm or (None, None)
    of_blocks = addresses_of_blocks(weights.blocks)
    found.newest(
        NewestCall(
            sequences=len(length_B),
            units=units,
            heads=weights.heads,
            pre_norm=weights.is_pre_norm,
            threads=torch.get_num_threads(),
            blocks=len(weights.blocks),
            max_length=len(weights.position_TD),
            scale=weights.item_scale,
            lengths=address(length_B),
            rows=address(row_P),
            items=address(weights.item_RD),
            places=address(weights.position_TD),
            weights=ctypes.addressof(of_blocks),
            norm_weight=None if norm_weight is None else address(norm_weight),
            norm_bias=None if norm_bias is None else address(norm_bias),
            output=address(output_BD),
        )
    )
    return output_BD
