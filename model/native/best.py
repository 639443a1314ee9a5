"""The best items of each user, collected from scores part by part; the same as a sort, without one.

Shapes: B users, C items of a part, E excluded, K best, J room for as many again, R rows of the item table.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.native.functions import kernels
from model.native.library import BestCall, OrderCall, address

_SCORES_WORTH_A_THREAD = 1 << 17
MOST_ROWS = 1 << 32
"""Items that a key has room for beside the score."""


def collects_natively(item_RD: Tensor) -> bool:
    """Whether the kernels can collect from scores of this table."""
    is_fitting = item_RD.device.type == "cpu" and item_RD.dtype == torch.float32 and len(item_RD) < MOST_ROWS
    return is_fitting and kernels() is not None


class NativeBest:
    """Up to `k` live items of each user, none of them excluded; of equal scores the lower row. NaN is not found."""

    def __init__(self, *, k: int, excluded_BE: Int[Tensor, "B E"], live_R: Bool[Tensor, " R"]) -> None:
        users = len(excluded_BE)
        padding_B1 = excluded_BE.new_full((users, 1), PADDING)
        self._excluded_BE = torch.cat((padding_B1, excluded_BE), dim=1)
        self._live_R = live_R.contiguous()
        self._k = k
        self._key_BJ = torch.empty(users, 2 * k, dtype=torch.int64)
        self._count_B = torch.zeros(users, dtype=torch.int64)

    def add(self, score_BC: Float[Tensor, "B C"], *, first: int) -> None:
        """Takes in the scores of the rows `first`, `first` + 1, ..., and spoils those of excluded ones."""
        found = kernels()
        assert found is not None, "ask `collects_natively` first"
        assert len(score_BC) == len(self._count_B)
        assert first + score_BC.shape[1] <= len(self._live_R)
        found.best(
            BestCall(
                users=len(score_BC),
                columns=score_BC.shape[1],
                first=first,
                keep=self._k,
                excluded_columns=self._excluded_BE.shape[1],
                threads=torch.get_num_threads() if score_BC.numel() >= _SCORES_WORTH_A_THREAD else 1,
                scores=address(score_BC),
                live=address(self._live_R, torch.bool),
                excluded=address(self._excluded_BE, torch.int64),
                keys=address(self._key_BJ, torch.int64),
                counts=address(self._count_B, torch.int64),
            )
        )

    def found(self) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Scores and rows, best first; -inf and PADDING where there are fewer than `k`."""
        return in_order(self._key_BJ, self._count_B, k=self._k)


def in_order(
    key_BJ: Int[Tensor, "B J"], count_B: Int[Tensor, " B"], *, k: int
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """What the keys of `best.h` stand for, the highest score first; -inf and PADDING behind."""
    found = kernels()
    assert found is not None, "who has keys has kernels"
    users = len(count_B)
    score_BK, row_BK = torch.full((users, k), -torch.inf), torch.full((users, k), PADDING)
    found.in_order(
        OrderCall(
            users=users,
            keep=k,
            threads=torch.get_num_threads() if users * k >= _SCORES_WORTH_A_THREAD else 1,
            keys=address(key_BJ, torch.int64),
            counts=address(count_B, torch.int64),
            scores=address(score_BK),
            rows=address(row_BK, torch.int64),
        )
    )
    return score_BK, row_BK
