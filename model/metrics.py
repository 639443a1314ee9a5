"""How well one expected item was ranked, from its rank (0 is the best). Shape: P positions.

Each is a value for every position; the mean over positions is the metric (HR@k, NDCG@k, MRR).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def hits(rank_P: Int[Tensor, " P"], *, k: int) -> Float[Tensor, " P"]:
    """1 where the item stands among the first k, else 0; its mean is HR@k."""
    return (rank_P < k).float()


def gains(rank_P: Int[Tensor, " P"], *, k: int) -> Float[Tensor, " P"]:
    """`1 / log2(rank + 2)` within the first k, else 0; its mean is NDCG@k for one relevant item."""
    return torch.where(rank_P < k, 1.0 / torch.log2(rank_P + 2.0), 0.0)


def reciprocal_ranks(rank_P: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """`1 / (rank + 1)`; its mean is MRR."""
    return 1.0 / (rank_P + 1.0)
