"""The hidden state at the newest item of every sequence, for prediction alone: the whole network in one call.

Shapes: B sequences, P positions of all of them one after another, D units, R rows of the item table, T positions that
the network knows.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.native.functions import kernels
from model.native.library import NewestCall, NewestWeights, address, addresses_of_blocks


class Weights(NamedTuple):
    """Of a network; those of a block in the order of `enum Weight` in weights.h."""

    item_RD: Float[Tensor, "R D"]
    position_TD: Float[Tensor, "T D"]
    blocks: Sequence[Sequence[Tensor]]
    final_norm: tuple[Tensor, Tensor] | None
    heads: int
    is_pre_norm: bool
    item_scale: float


class Prepared:
    """The weights as the kernels want them: those of the blocks copied, the item table and the positions as they are.

    So the blocks may change, the tables must not, for as long as hidden states are asked for.
    """

    def __init__(self, weights: Weights) -> None:
        found = kernels()
        assert found is not None, "ask `runs_natively` first"
        norm_weight, norm_bias = weights.final_norm or (None, None)
        of_blocks = addresses_of_blocks(weights.blocks)
        self._kernels, self._tables = found, (weights.item_RD, weights.position_TD)
        self._units = weights.item_RD.shape[1]
        self._handle = found.newest_prepare(
            NewestWeights(
                units=self._units,
                heads=weights.heads,
                pre_norm=weights.is_pre_norm,
                blocks=len(weights.blocks),
                max_length=len(weights.position_TD),
                table_rows=len(weights.item_RD),
                scale=weights.item_scale,
                items=address(weights.item_RD),
                places=address(weights.position_TD),
                weights=ctypes.addressof(of_blocks),
                norm_weight=None if norm_weight is None else address(norm_weight),
                norm_bias=None if norm_bias is None else address(norm_bias),
            )
        )
        weakref.finalize(self, found.newest_forget, self._handle)

    def newest(self, *, row_P: Int[Tensor, " P"], length_B: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Zero for an empty sequence. The gradient is not known."""
        output_BD = torch.zeros(len(length_B), self._units)
        row_P, length_B = row_P.contiguous(), length_B.contiguous()
        self._kernels.newest(
            self._handle,
            NewestCall(
                sequences=len(length_B),
                threads=torch.get_num_threads(),
                lengths=address(length_B, torch.int64),
                rows=address(row_P, torch.int64),
                output=address(output_BD),
            ),
            table_rows=len(self._tables[0]),
        )
        return output_BD
