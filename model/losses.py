"""What a prediction costs: pure functions of positions, one signature, a weight for every position.

Shapes: P positions, K negatives, R rows of the item table, D units, S slates.

`s_pi` is the score of item i at position p, the product of hidden state and item embedding; every loss is
`sum_p w_p l_p / P`. A negative that is PADDING or the target itself is masked: it costs nothing and teaches nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING
from model.checked import check_kinds, existing_rows
from model.full_softmax import full_cross_entropy
from model.native.drawn import Cost, Drawn, Wanted, draws_natively, native_drawn_softmax, native_drawn_softplus
from model.native.rows import learns_natively
from model.native.scores import native_scores
from model.one_thread import in_one_thread, weighted_sum

GBCE_CALIBRATION = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """Positions to be learnt, gathered from a batch: one row each, without padding."""

    hidden_PD: Float[Tensor, "P D"]
    target_P: Int[Tensor, " P"]
    """Row of the item that came next."""
    weight_P: Float[Tensor, " P"]
    item_RD: Float[Tensor, "R D"]
    """The item table itself, so that gradients stay row-wise."""
    size: int
    """Rows of the table in use; those from `size` on are no items."""
    live_N: Int[Tensor, " N"] | None = None
    """Rows that hold an item, ascending; None where all from 1 to `size` - 1 do. No other is a target, or drawn."""
    negative: Int[Tensor, "P K"] | Int[Tensor, " K"] | None = None
    """Rows of sampled negatives, for each position or shared by all."""
    log_q_R: Float[Tensor, " R"] | None = None
    """Natural logarithm of each row's chance to be drawn as one negative (sampled_softmax)."""
    product_kind: torch.dtype | None = None
    """What the factors of the products with all items are rounded to (cross_entropy); None: to nothing else."""

    def __post_init__(self) -> None:
        """Rows become int64 and weights what hidden states are; a target is an item, a negative an item or PADDING.

        Raises:
            TypeError: rows that are no whole numbers, or items of another kind than hidden states.
            IndexError: a row that is not in use.
        """
        check_kinds(self.hidden_PD, self.item_RD)
        end = min(self.size, len(self.item_RD))
        self._become("target_P", existing_rows(self.target_P, first=PADDING + 1, end=end))
        self._become("weight_P", self.weight_P.to(self.hidden_PD.dtype))
        if self.negative is not None:
            self._become("negative", existing_rows(self.negative, end=end))
        if self.log_q_R is not None:
            self._become("log_q_R", self.log_q_R.to(self.hidden_PD.dtype))

    @property
    def items(self) -> int:
        """How many there are."""
        return self.size - 1 if self.live_N is None else len(self.live_N)

    def _become(self, name: str, value: Tensor) -> None:
        object.__setattr__(self, name, value)


Loss = Callable[[Positions], Float[Tensor, ""]]


def bpr(positions: Positions) -> Float[Tensor, ""]:
    """`l = mean_j -ln sigmoid(s_i - s_j)` over the negatives j of a position (Rendle et al. 2009, BPR-Opt)."""
    if (row_K := _shared(positions)) is not None:
        target_P = _target_scores(positions)
        return _softplus(positions, row_K, level_P=target_P, cost=Cost.MEAN)
    target_P, negative_PK, valid_PK = _scores(positions)
    return _weighted(_masked_mean(functional.softplus(negative_PK - target_P[:, None]), valid_PK), positions)


def bce(positions: Positions) -> Float[Tensor, ""]:
    """`l = -ln sigmoid(s_i) + mean_j -ln(1 - sigmoid(s_j))` (Kang & McAuley 2018, eq. 7, there with one negative)."""
    if (row_K := _shared(positions)) is not None:
        target_P = _target_scores(positions)
        against = _softplus(positions, row_K, level_P=torch.zeros_like(target_P), cost=Cost.MEAN)
        return _weighted(functional.softplus(-target_P), positions) + against
    target_P, negative_PK, valid_PK = _scores(positions)
    negative_P = _masked_mean(functional.softplus(negative_PK), valid_PK)
    return _weighted(functional.softplus(-target_P) + negative_P, positions)


def gbce(positions: Positions, *, calibration: float = GBCE_CALIBRATION) -> Float[Tensor, ""]:
    """`l = -(beta ln sigmoid(z_i) + sum_j ln(1 - sigmoid(z_j))) / (K + 1)` (Petrov & Macdonald 2023, eq. 17 and 21).

    `beta = a (t (1 - 1/a) + 1/a)` with the sampling rate a = K / (items - 1) and the calibration t: 0 is BCE, 1 gives
    probabilities as if every item had been a negative. Masked negatives count in K.

    z = s + ln(beta / K): an item that nothing is known of is next with that odds. The paper leaves z = s; then every
    score must first fall so far, which rows of the item table do together, along one direction, and what tells them
    apart drowns in it. No rank depends on the constant. With K = 1 and t = 0 it is zero; so it is without negatives.
    """
    count = _negative(positions).shape[-1]
    rate = min(1.0, count / max(1, positions.items - 1))
    beta = 1.0 - calibration * (1.0 - rate)
    start = math.log(beta / count) if count else 0.0
    if (row_K := _shared(positions)) is not None:
        target_P = _target_scores(positions)
        against = _softplus(positions, row_K, level_P=torch.full_like(target_P, -start), cost=Cost.SUM)
        return (_weighted(beta * functional.softplus(-(target_P + start)), positions) + against) / (count + 1)
    target_P, negative_PK, valid_PK = _scores(positions)
    negative_P = torch.where(valid_PK, functional.softplus(negative_PK + start), 0.0).sum(dim=1)
    return _weighted((beta * functional.softplus(-(target_P + start)) + negative_P) / (count + 1), positions)


def sampled_softmax(positions: Positions) -> Float[Tensor, ""]:
    """`l = -ln(e^s_i / (e^s_i + sum_j e^(s_j - ln(K q_j))))` (Bengio & Senecal 2008; Jean et al. 2015, eq. 8).

    q is the chance with which a negative is drawn; without `log_q_R` it is uniform over the items. K counts the
    negatives that are not masked.
    """
    if (row_K := _shared(positions)) is not None:
        return _sampled_softmax_natively(positions, row_K)
    target_P, negative_PK, valid_PK = _scores(positions)
    log_expected_PK = valid_PK.sum(dim=1, keepdim=True).clamp(min=1).log() + _log_q(positions)
    corrected_PK = torch.where(valid_PK, negative_PK - log_expected_PK, -torch.inf)
    score_PC = torch.cat((target_P[:, None], corrected_PK), dim=1)
    return _weighted(score_PC.logsumexp(dim=1) - target_P, positions)


def cross_entropy(positions: Positions) -> Float[Tensor, ""]:
    """`l = -ln(e^s_i / sum_j e^s_j)` over every item j of the table; takes no negatives."""
    positions = _close_together(positions)
    total = full_cross_entropy(
        positions.hidden_PD,
        positions.item_RD,
        target_P=positions.target_P,
        weight_P=positions.weight_P,
        size=positions.size,
        kind=positions.product_kind,
    )
    return total / max(1, positions.target_P.shape[0])


LOSSES: dict[str, Loss] = {
    "bpr": bpr,
    "bce": bce,
    "gbce": gbce,
    "sampled_softmax": sampled_softmax,
    "cross_entropy": cross_entropy,
}


def in_slate_pairs(
    score_SK: Float[Tensor, "S K"],
    clicked_SK: Bool[Tensor, "S K"],
    negative_SK: Bool[Tensor, "S K"],
    weight_SK: Float[Tensor, "S K"],
) -> Float[Tensor, ""]:
    """`sum_s sum_ij w_si softplus(-(s_si - s_sj)) / S`, i clicked and j shown but not clicked in slate s.

    docs/propensities.md section 4, term (a). Slots that are neither clicked nor negative (empty, unseen) take no part;
    no slates cost nothing. It takes scores and not `Positions`, for it compares what stood in one slate: its items are
    given and several may be clicked, each with a weight of its own, so there is neither a target nor a draw.
    """
    pair_SKK = functional.softplus(score_SK[:, None, :] - score_SK[:, :, None]) * weight_SK[:, :, None]
    counted_SKK = clicked_SK[:, :, None] & negative_SK[:, None, :]
    return torch.where(counted_SKK, pair_SKK, 0.0).sum(dim=(1, 2)).sum() / max(1, score_SK.shape[0])


def _close_together(positions: Positions) -> Positions:
    """Where rows between items hold none, the same with a table of the items alone."""
    live_N = positions.live_N
    if live_N is None:
        return positions
    target_P = torch.searchsorted(live_N, positions.target_P)
    if not torch.equal(live_N[target_P.clamp(max=len(live_N) - 1)], positions.target_P):
        raise IndexError("a target's row holds no item; look targets up anew")
    row_R = functional.pad(live_N, (1, 0), value=PADDING)
    item_RD = _take(positions.item_RD, row_R)
    return dataclasses.replace(
        positions, target_P=target_P + 1, item_RD=item_RD, size=len(row_R), live_N=None, negative=None, log_q_R=None
    )


def _negative(positions: Positions) -> Int[Tensor, "P K"] | Int[Tensor, " K"]:
    if positions.negative is None:
        raise ValueError("this loss needs negatives; draw some, or choose cross_entropy")
    return positions.negative


def _shared(positions: Positions) -> Int[Tensor, " K"] | None:
    """The negatives that all positions share, where the kernel can do them."""
    negative = _negative(positions)
    return negative if negative.ndim == 1 and draws_natively(positions.item_RD, negative) else None


def _target_scores(positions: Positions) -> Float[Tensor, " P"]:
    return _chosen(positions.hidden_PD, positions.item_RD, positions.target_P[:, None])[:, 0]


def _softplus(
    positions: Positions, row_K: Int[Tensor, " K"], *, level_P: Float[Tensor, " P"], cost: Cost
) -> Float[Tensor, ""]:
    """`sum_p w_p softplus(s_j - level_p) / P`, summed over the shared negatives j or their mean."""
    wanted = Wanted(positions.target_P, positions.weight_P)
    total = native_drawn_softplus(
        positions.hidden_PD, positions.item_RD, level_P, wanted=wanted, drawn=Drawn(row_K, cost=cost)
    )
    return total / max(1, len(level_P))


def _sampled_softmax_natively(positions: Positions, row_K: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    score_P = _target_scores(positions)
    total = native_drawn_softmax(
        positions.hidden_PD,
        positions.item_RD,
        score_P,
        wanted=Wanted(positions.target_P, positions.weight_P),
        drawn=Drawn(row_K, _log_q(positions).expand(len(row_K))),
    )
    return total / max(1, len(score_P))


def _scores(positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
    """target_P, negative_PK and which of the negatives count."""
    negative = _negative(positions)
    is_shared = negative.ndim == 1
    choice_PC = positions.target_P[:, None]
    if not is_shared:
        choice_PC = torch.cat((choice_PC, negative), dim=1)
    score_PC = _chosen(positions.hidden_PD, positions.item_RD, choice_PC)
    target_P, score_PK = score_PC[:, 0], score_PC[:, 1:]
    if is_shared:
        score_PK = in_one_thread(_shared_scores, positions.hidden_PD, positions.item_RD, negative)
    return target_P, score_PK, (negative != PADDING) & (negative != positions.target_P[:, None])


def _chosen(
    hidden_PD: Float[Tensor, "P D"], item_RD: Float[Tensor, "R D"], choice_PC: Int[Tensor, "P C"]
) -> Float[Tensor, "P C"]:
    """Scores of each position's own choices."""
    if learns_natively(item_RD) and hidden_PD.dtype == torch.float32:
        return native_scores(hidden_PD, item_RD, choice_PC)
    return in_one_thread(_own_scores, hidden_PD, item_RD, choice_PC)


def _own_scores(hidden_PD: Tensor, item_RD: Tensor, choice_PC: Tensor) -> Tensor:
    return torch.einsum("pd,pcd->pc", hidden_PD, _take(item_RD, choice_PC))


def _shared_scores(hidden_PD: Tensor, item_RD: Tensor, row_K: Tensor) -> Tensor:
    return hidden_PD @ _take(item_RD, row_K).T


def _take(item_RD: Tensor, row: Tensor) -> Tensor:
    return functional.embedding(row, item_RD, padding_idx=PADDING, sparse=True)


def _log_q(positions: Positions) -> Tensor:
    if positions.log_q_R is None:
        return positions.hidden_PD.new_tensor(float(max(1, positions.items))).log().neg()
    assert positions.negative is not None
    return positions.log_q_R[positions.negative]


def _masked_mean(cost_PK: Tensor, valid_PK: Tensor) -> Tensor:
    """Mean over the valid ones, zero where there is none."""
    return torch.where(valid_PK, cost_PK, 0.0).sum(dim=1) / valid_PK.sum(dim=1).clamp(min=1)


def _weighted(loss_P: Float[Tensor, " P"], positions: Positions) -> Float[Tensor, ""]:
    return weighted_sum(loss_P.to(positions.weight_P.dtype), positions.weight_P) / max(1, loss_P.shape[0])
