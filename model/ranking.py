"""The best items of the whole catalogue, and where an item ranks in it.

Shapes: B users, P positions, R rows of the item table, C rows of a part of it, D units, E rows excluded, K best items.

Memory is bounded by `CHUNK_SCORES`, whatever the catalogue or the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.checked import check_kinds, existing_rows
from model.native.best import NativeBest, collects_natively

CHUNK_SCORES = 1 << 20
"""Scores held at once: 4 MiB in float32 stay in the cache until they are looked at."""
ROUNDING = 1e-6
"""How far apart two sums of the same products may lie, as a share of the sum of their sizes."""


class TopK(NamedTuple):
    """The best items, best first; where fewer than K may be served, PADDING with a score of -inf at the end."""

    score_BK: Float[Tensor, "B K"]
    row_BK: Int[Tensor, "B K"]


def top_k(
    hidden_BD: Float[Tensor, "B D"],
    item_RD: Float[Tensor, "R D"],
    *,
    k: int,
    excluded_BE: Int[Tensor, "B E"],
    live_R: Bool[Tensor, " R"],
) -> TopK:
    """The k best live items of each user without the excluded ones (filled up with PADDING).

    Raises:
        TypeError: excluded rows that are no whole numbers, or items of another kind than hidden states.
        IndexError: an excluded row that is not in the table.
        ValueError: it is not known of every row, or of more than there are, whether it is live.
    """
    excluded_BE = checked(hidden_BD, item_RD, excluded_BE=excluded_BE, live_R=live_R)
    if k > 0 and collects_natively(item_RD):
        return _top_k_natively(hidden_BD, item_RD, k=k, excluded_BE=excluded_BE, live_R=live_R)
    users = hidden_BD.shape[0]
    best = TopK(hidden_BD.new_full((users, 0), -torch.inf), excluded_BE.new_empty((users, 0)))
    width = max(k, CHUNK_SCORES // max(1, users))
    for start in range(0, item_RD.shape[0], width):
        score_BC = _scores(hidden_BD, item_RD[start : start + width], live_R[start : start + width], start)
        _exclude(score_BC, excluded_BE - start)
        best = _merge(best, score_BC, start, k)
    return _filled(best, k)


@torch.no_grad()
def _top_k_natively(hidden_BD: Tensor, item_RD: Tensor, *, k: int, excluded_BE: Tensor, live_R: Tensor) -> TopK:
    users = len(hidden_BD)
    best = NativeBest(k=k, excluded_BE=excluded_BE, live_R=live_R)
    width = max(1, CHUNK_SCORES // max(1, users))
    room = hidden_BD.new_empty(users * min(width, len(item_RD)))
    for start in range(0, len(item_RD), width):
        item_CD = item_RD[start : start + width]
        score_BC = room[: users * len(item_CD)].view(users, len(item_CD))
        if users == 1:  # a third faster than the product of two matrices
            torch.mv(item_CD, hidden_BD[0], out=score_BC[0])
        else:
            torch.mm(hidden_BD, item_CD.T, out=score_BC)
        best.add(score_BC, first=start)
    return TopK(*best.found())


def checked(
    hidden_BD: Float[Tensor, "B D"],
    item_RD: Float[Tensor, "R D"],
    *,
    excluded_BE: Int[Tensor, "B E"],
    live_R: Bool[Tensor, " R"],
) -> Int[Tensor, "B E"]:
    """The excluded rows as int64; errors as `top_k`."""
    check_kinds(hidden_BD, item_RD)
    if len(live_R) != len(item_RD):
        raise ValueError(f"{len(live_R)} rows are live or not, of {len(item_RD)}; take both from one version")
    return existing_rows(excluded_BE, end=len(item_RD))


class Foreseen(NamedTuple):
    """Where the item stood that came, and what stood first."""

    rank_P: Int[Tensor, " P"]
    """0 for the best; as `rank_of`."""
    row_PK: Int[Tensor, "P K"]
    """Best first, PADDING where fewer than K may be served."""


def rank_of(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    *,
    target_P: Int[Tensor, " P"],
    excluded_PE: Int[Tensor, "P E"],
    live_R: Bool[Tensor, " R"],
) -> Int[Tensor, " P"]:
    """How many other live items, not excluded, score at least as high as the target; 0 is the best.

    Ties count against the model, so that a constant score earns nothing; so does what differs by rounding alone. A
    target that is PADDING (unknown), not live or excluded gets R, a miss at any cut-off.
    """
    return foreseen(hidden_PD, item_RD, target_P=target_P, excluded_PE=excluded_PE, live_R=live_R, k=0).rank_P


@torch.no_grad()
def foreseen(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    *,
    target_P: Int[Tensor, " P"],
    excluded_PE: Int[Tensor, "P E"],
    live_R: Bool[Tensor, " R"],
    k: int,
) -> Foreseen:
    """Ranks as `rank_of` gives them and the k best items, from one look at every part of the catalogue.

    Raises:
        As `top_k`; and IndexError for a target that is not in the table.
    """
    excluded_PE = checked(hidden_PD, item_RD, excluded_BE=excluded_PE, live_R=live_R)
    target_P = existing_rows(target_P, end=len(item_RD))
    product_PD = hidden_PD * item_RD[target_P]
    level_P1 = (product_PD.sum(dim=1) - ROUNDING * product_PD.abs().sum(dim=1))[:, None]
    is_served_P = live_R[target_P] & (target_P != PADDING) & ~(excluded_PE == target_P[:, None]).any(dim=1)
    best = _Best(hidden_PD, k=k, excluded_PE=excluded_PE, live_R=live_R)
    ahead_P = torch.zeros_like(target_P)
    width = max(1, CHUNK_SCORES // max(1, len(hidden_PD)))
    for start in range(0, len(item_RD), width):
        score_PC = _scores(hidden_PD, item_RD[start : start + width], live_R[start : start + width], start)
        _exclude(score_PC, excluded_PE - start)
        ahead_P += _counted(score_PC >= level_P1)
        best.add(score_PC, start)
    return Foreseen(torch.where(is_served_P, ahead_P - 1, len(item_RD)), best.row_PK())


class _Best:
    """The k best items, part by part: natively where that goes."""

    def __init__(self, hidden_PD: Tensor, *, k: int, excluded_PE: Tensor, live_R: Tensor) -> None:
        self._k = k
        self._best = TopK(hidden_PD.new_full((len(hidden_PD), 0), -torch.inf), excluded_PE[:, :0])
        is_native = k > 0 and collects_natively(hidden_PD)
        self._native = NativeBest(k=k, excluded_BE=excluded_PE[:, :0], live_R=live_R) if is_native else None

    def add(self, score_PC: Tensor, start: int) -> None:
        """Scores of the next part; what may not be served is -inf."""
        if self._native is not None:
            self._native.add(score_PC, first=start)
        elif self._k:
            self._best = _merge(self._best, score_PC, start, self._k)

    def row_PK(self) -> Int[Tensor, "P K"]:  # noqa: N802 - a shape suffix
        """Best first, PADDING at the end."""
        return self._native.found()[1] if self._native is not None else _filled(self._best, self._k).row_BK


def _scores(hidden_BD: Tensor, item_CD: Tensor, live_C: Tensor, start: int) -> Tensor:
    score_BC = hidden_BD @ item_CD.T
    items = slice(PADDING + 1, None) if start == PADDING else slice(None)
    if not live_C[items].all():
        score_BC.masked_fill_(~live_C, -torch.inf)
    if start == PADDING:
        score_BC[:, PADDING] = -torch.inf
    return score_BC


def _counted(is_PC: Bool[Tensor, "P C"]) -> Int[Tensor, " P"]:
    """True ones of each row; torch's sum makes numbers of eight bytes of them first, which takes ten times as long."""
    if is_PC.device.type != "cpu":
        return is_PC.sum(dim=1)
    return torch.tensor([np.count_nonzero(is_C) for is_C in is_PC.numpy()], dtype=torch.int64)


def _exclude(score_BC: Tensor, column_BE: Tensor) -> None:
    user, slot = torch.nonzero((column_BE >= 0) & (column_BE < score_BC.shape[1]), as_tuple=True)
    score_BC[user, column_BE[user, slot]] = -torch.inf


def _merge(best: TopK, score_BC: Tensor, start: int, k: int) -> TopK:
    score_BK, column_BK = score_BC.topk(min(k, score_BC.shape[1]), dim=1)
    score_BM = torch.cat((best.score_BK, score_BK), dim=1)
    row_BM = torch.cat((best.row_BK, column_BK + start), dim=1)
    score_BK, index_BK = score_BM.topk(min(k, score_BM.shape[1]), dim=1)
    return TopK(score_BK, row_BM.gather(1, index_BK))


def _filled(best: TopK, k: int) -> TopK:
    row_BK = best.row_BK.masked_fill(best.score_BK == -torch.inf, PADDING)
    missing = (0, k - row_BK.shape[1])
    pad = torch.nn.functional.pad
    return TopK(pad(best.score_BK, missing, value=-torch.inf), pad(row_BK, missing, value=PADDING))
