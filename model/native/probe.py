"""The best rows of some lists for each user, each read where the item table has it.

Shapes: B users, E excluded, P lists looked through, K best, D units, R rows of the item table, F borders of lists, N
rows that stand in lists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.native.best import in_order
from model.native.functions import kernels
from model.native.library import ProbeCall, address


class Lists(NamedTuple):
    """All lists, and which of them each user's search looks through."""

    border_F: Int[Tensor, " F"]
    """Where each begins in `row_N`, and where the last one ends."""
    row_N: Int[Tensor, " N"]
    """int32, one list after another."""
    probed_BP: Int[Tensor, "B P"]


def probed_natively(
    hidden_BD: Float[Tensor, "B D"],
    item_RD: Float[Tensor, "R D"],
    lists: Lists,
    *,
    k: int,
    excluded_BE: Int[Tensor, "B E"],
    live_R: Bool[Tensor, " R"],
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Scores and rows, best first; -inf and PADDING where the lists hold fewer than `k`."""
    found = kernels()
    assert found is not None, "ask `collects_natively` first"
    users = len(hidden_BD)
    padding_B1 = excluded_BE.new_full((users, 1), PADDING)
    excluded_BE = torch.cat((padding_B1, excluded_BE), dim=1).sort(dim=1).values.contiguous()
    hidden_BD, probed_BP, live_R = hidden_BD.contiguous(), lists.probed_BP.contiguous(), live_R.contiguous()
    key_BJ, count_B = torch.empty(users, 2 * k, dtype=torch.int64), torch.zeros(users, dtype=torch.int64)
    found.probe(
        ProbeCall(
            users=users,
            units=item_RD.shape[1],
            probes=probed_BP.shape[1],
            keep=k,
            excluded_columns=excluded_BE.shape[1],
            threads=torch.get_num_threads(),
            hidden=address(hidden_BD),
            items=address(item_RD),
            starts=address(lists.border_F, torch.int64),
            rows=address(lists.row_N, torch.int32),
            probed=address(probed_BP, torch.int64),
            live=address(live_R, torch.bool),
            excluded=address(excluded_BE, torch.int64),
            keys=address(key_BJ, torch.int64),
            counts=address(count_B, torch.int64),
        )
    )
    return in_order(key_BJ, count_B, k=k)
