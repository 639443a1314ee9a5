"""Items that a user did not choose: negatives drawn a whole batch at once, by a generator that is passed in.

Shapes: N items, R rows of the item table, P positions, K negatives, T items that a user has.

In-batch negatives need no draw: pass the targets of the batch as shared negatives, with the `log_q` of
`by_popularity(..., alpha=1)` for the correction (Yi et al. 2019).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from model.catalogue import PADDING


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """Draws items, with replacement, in proportion to their share."""

    row_N: Int[np.ndarray, " N"]
    """Rows that may be drawn; at least one."""
    cumulative_N: Float[np.ndarray, " N"] | None
    """Running sum of the shares, ending at 1; None where all are equal."""

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Int[Tensor, "*shape"]:
        """Rows of independent draws."""
        if self.cumulative_N is None:
            index = rng.integers(0, len(self.row_N), size=shape)
        else:
            index = np.searchsorted(self.cumulative_N, rng.random(shape), side="right")
        return torch.from_numpy(self.row_N[index])

    def log_q(self, *, rows: int) -> Float[Tensor, " R"]:
        """Natural logarithm of each row's chance in one draw, -inf for a row that is never drawn."""
        share_N = 1.0 / len(self.row_N) if self.cumulative_N is None else np.diff(self.cumulative_N, prepend=0.0)
        chance_R = np.zeros(rows)
        chance_R[self.row_N] = share_N
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(chance_R).astype(np.float32))


def uniform(row_N: Int[np.ndarray, " N"]) -> Sampler:
    """Every item with the same chance.

    Raises:
        ValueError: no items.
    """
    _check_items(row_N)
    return Sampler(row_N=row_N, cumulative_N=None)


def by_popularity(row_N: Int[np.ndarray, " N"], clicks_N: Real[np.ndarray, " N"], *, alpha: float) -> Sampler:
    """Items in proportion to `(clicks + 1) ** alpha`, so that new ones are drawn too (Mikolov et al. 2013: alpha 0.75).

    Raises:
        ValueError: no items.
    """
    _check_items(row_N)
    cumulative_N = np.cumsum((clicks_N + 1.0) ** alpha)
    cumulative_N /= cumulative_N[-1]
    return Sampler(row_N=row_N, cumulative_N=cumulative_N)


def without_own(negative_PK: Int[Tensor, "P K"], own_PT: Int[Tensor, "P T"]) -> Int[Tensor, "P K"]:
    """The negatives with those that the user has masked (PADDING), so that no loss counts them."""
    own_PK = (negative_PK[:, :, None] == own_PT[:, None, :]).any(dim=2)
    return negative_PK.masked_fill(own_PK, PADDING)


def _check_items(row_N: Int[np.ndarray, " N"]) -> None:
    if not len(row_N):
        raise ValueError("no items to draw negatives from; admit items first")
