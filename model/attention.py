"""What the network looked at: the attention of the newest position over a user's items, for people to read.

A plain reading of eq. 2-6 of the paper, one user at a time, beside the fast one in `sasrec`; a test holds the two
together. Shapes: T positions, D units, N blocks, H heads, K units of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from model.sasrec import Block, SASRec


class Looked(NamedTuple):
    """The newest position, and how it came about."""

    hidden_D: Float[Tensor, " D"]
    """To be multiplied with the item table."""
    attention_NHT: Float[Tensor, "N H T"]
    """Of each block and head over the positions, oldest first; adds up to one."""


@torch.inference_mode()
def looked_at(network: SASRec, rows_T: Int[Tensor, " T"]) -> Looked:
    """Reads the newest items that the network can; there is at least one.

    Raises:
        ValueError: no item.
    """
    rows_T = rows_T[-network.settings.max_length :]
    if not len(rows_T):
        raise ValueError("a user without items has no attention; ask for one with clicks")
    table_RD, position_TD = network.item_RD, network.position_TD[-len(rows_T) :]
    hidden_TD = table_RD[rows_T] * network.settings.units**0.5 + position_TD
    seen = []
    for block in network.blocks:
        assert isinstance(block, Block)
        hidden_TD, attention_HT = _through(block, hidden_TD)
        seen.append(attention_HT)
    nothing_NHT = hidden_TD.new_empty(0, network.settings.heads, len(rows_T))
    return Looked(network.final_norm(hidden_TD)[-1], torch.stack(seen) if seen else nothing_NHT)


def _through(block: Block, input_TD: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T D"], Float[Tensor, "H T"]]:
    """What a block makes of all positions, and how the newest looked at them."""
    is_pre = block.shape.norm == "pre"
    normed_TD = block.attention_norm(input_TD) if is_pre else input_TD
    query, key, value = (_by_head(part, block.shape.heads) for part in block.query_key_value(normed_TD).chunk(3, dim=1))
    length, units = query.shape[1:]
    later_TT = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
    score_HTT = (query @ key.transpose(1, 2) / units**0.5).masked_fill(later_TT, -torch.inf)
    attention_HTT = score_HTT.softmax(dim=2)
    joined_TD = input_TD + (attention_HTT @ value).transpose(0, 1).flatten(1)
    joined_TD = joined_TD if is_pre else block.attention_norm(joined_TD)
    inner_TD = block.inner(block.forward_norm(joined_TD) if is_pre else joined_TD)
    summed_TD = joined_TD + block.outer(functional.relu(inner_TD))
    return summed_TD if is_pre else block.forward_norm(summed_TD), attention_HTT[:, -1]


def _by_head(hidden_TD: Float[Tensor, "T D"], heads: int) -> Float[Tensor, "H T K"]:
    return hidden_TD.view(len(hidden_TD), heads, -1).transpose(0, 1)
