"""The best items of the whole catalogue, and where an item ranks in it.

Shapes: B users, P positions, R rows of the item table, D units, E rows excluded, K best items.

Memory is bounded by `CHUNK_SCORES`, whatever the catalogue or the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.catalogue import PADDING
from model.native.best import NativeBest, collects_natively

CHUNK_SCORES = 1 << 20
"""Scores held at once: 4 MiB in float32 stay in the cache until they are looked at."""


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
    """The k best live items of each user without the excluded ones (filled up with PADDING)."""
    if collects_natively(item_RD):
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


def rank_of(
    hidden_PD: Float[Tensor, "P D"],
    item_RD: Float[Tensor, "R D"],
    *,
    target_P: Int[Tensor, " P"],
    excluded_PE: Int[Tensor, "P E"],
    live_R: Bool[Tensor, " R"],
) -> Int[Tensor, " P"]:
    """How many other live items, not excluded, score at least as high as the target; 0 is the best.

    Ties count against the model, so that a constant score earns nothing. A target that is PADDING (unknown), not live
    or excluded gets R, a miss at any cut-off.
    """
    rank_P = torch.empty_like(target_P)
    height = max(1, CHUNK_SCORES // item_RD.shape[0])
    for start in range(0, len(target_P), height):
        chunk = slice(start, start + height)
        score_PR = _scores(hidden_PD[chunk], item_RD, live_R, 0)
        _exclude(score_PR, excluded_PE[chunk])
        rank_P[chunk] = _ranks(score_PR, target_P[chunk])
    return rank_P


def _scores(hidden_BD: Tensor, item_CD: Tensor, live_C: Tensor, start: int) -> Tensor:
    score_BC = (hidden_BD @ item_CD.T).masked_fill_(~live_C, -torch.inf)
    if start == PADDING:
        score_BC[:, PADDING] = -torch.inf
    return score_BC


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


def _ranks(score_PR: Tensor, target_P: Tensor) -> Tensor:
    target_P1 = score_PR.gather(1, target_P[:, None])
    rank_P = (score_PR >= target_P1).sum(dim=1) - 1
    return torch.where(target_P1[:, 0] == -torch.inf, score_PR.shape[1], rank_P)
