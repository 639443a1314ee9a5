"""Few shapes instead of many, for a GPU: sequences padded to a handful of lengths and counts, blocks compiled for each.

A GPU is told what to do kernel by kernel; with sequences as short as ours that telling takes longer than the doing.
torch.compile fuses the kernels of all blocks, dropout's included, but for one shape at a time: so lengths are rounded
up to the next of a few and counts to the next power of two, and what that pads is computed in vain. On a CPU nothing
is padded (model/native). Shapes: B sequences, G of them in a bucket, T slots, D units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.dropout import Kept

SHORTEST, FEWEST = 16, 8
"""Slots of the smallest shape, and sequences."""
MOST_SHAPES = 64
"""Beyond so many, torch goes on without compiling."""

Through = Callable[[Iterable[nn.Module], Tensor, Iterable[Kept | None]], Tensor]


class Bucket(NamedTuple):
    """Sequences that take one shape: B x T."""

    group_G: Int[np.ndarray, " G"]
    slots: int
    """T, no less than the longest has."""
    sequences: int
    """B, no fewer than there are."""

    def filled(self) -> Int[np.ndarray, " B"]:
        """The sequences, and the first of them again in every place that is left."""
        filler = np.full(self.sequences - len(self.group_G), self.group_G[0])
        return np.concatenate((self.group_G, filler))


def buckets_of(length_B: Int[np.ndarray, " B"], *, max_length: int) -> list[Bucket]:
    """Every sequence once, in the bucket of its length; shortest first, in the order of the batch within each."""
    slots_B = np.array([min(max_length, max(SHORTEST, _power_of_two(length))) for length in length_B.tolist()])
    groups = [(slots, np.flatnonzero(slots_B == slots)) for slots in np.unique(slots_B).tolist()]
    return [Bucket(group_G, slots, max(FEWEST, _power_of_two(len(group_G)))) for slots, group_G in groups]


def through(
    blocks: Iterable[nn.Module], hidden_BTD: Float[Tensor, "B T D"], kept: Iterable[Kept | None]
) -> Float[Tensor, "B T D"]:
    """Every slot behind all blocks; a function of its own, so that torch can compile it."""
    for block, of_block in zip(blocks, kept, strict=True):
        hidden_BTD = block(hidden_BTD, None, of_block)
    return hidden_BTD


@functools.cache
def compiled() -> Through:
    """`through`, compiled anew for every shape that it meets, once for all networks."""
    torch._dynamo.config.recompile_limit = MOST_SHAPES  # noqa: SLF001 - torch has no public name for it
    function: Through = torch.compile(through, dynamic=False)
    return function


def _power_of_two(number: int) -> int:
    """No less than the number, which is 1 or more."""
    return 1 << (number - 1).bit_length()
