"""Items that a user did not choose: negatives drawn a whole batch at once, by a generator that is passed in.

Shapes: N items, R rows of the item table, P positions, K negatives, B sequences, T items of a sequence.

Three kinds: `Sampler.draw` gives negatives shared by a whole batch, `draw_for_each` some for each position, and
`in_batch` takes the targets of the batch itself, to be corrected by the `log_q` of `by_popularity(..., alpha=1)`.
All that is random comes from the generator that is passed in, and the order of draws depends on shapes alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from model.catalogue import PADDING

REDRAWS = 8
"""How often an own item is drawn again; one that makes up half of a catalogue stays with a chance of 0.2 %."""


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


def in_batch(target_P: Int[Tensor, " P"], *, most: int, rng: np.random.Generator) -> Int[Tensor, " K"]:
    """The items that others chose, as shared negatives; `most` of them, drawn without replacement, if there are more.

    Popular items come often, so the scores must be corrected by how often (Yi et al. 2019, section 3.2).
    """
    if len(target_P) <= most:
        return target_P
    return target_P[torch.from_numpy(rng.choice(len(target_P), size=most, replace=False)).to(target_P.device)]


def draw_for_each(
    sampler: Sampler,
    count: int,
    *,
    owner_P: Int[np.ndarray, " P"],
    own_BT: Int[np.ndarray, "B T"],
    rng: np.random.Generator,
) -> Int[Tensor, "P K"]:
    """`count` negatives for each position, none of them among the items of the sequence that owns it.

    An own item is drawn again, which leaves the others' chances in proportion; where that fails `REDRAWS` times (the
    sequence has nearly everything) the slot is PADDING, which no loss counts.
    """
    drawn_PK = sampler.draw((len(owner_P), count), rng).numpy()
    own = _Own(own_BT)
    clash_PK = own.has(owner_P[:, None], drawn_PK)
    for _ in range(REDRAWS):
        position, slot = np.nonzero(clash_PK)
        if not len(position):
            break
        drawn_PK[position, slot] = sampler.draw((len(position),), rng).numpy()
        clash_PK[position, slot] = own.has(owner_P[position], drawn_PK[position, slot])
    return torch.from_numpy(np.where(clash_PK, PADDING, drawn_PK))


class _Own:
    """Which rows stand in which sequence, as sorted numbers: the memory follows the sequences, not the catalogue."""

    def __init__(self, own_BT: Int[np.ndarray, "B T"]) -> None:
        self._rows = int(own_BT.max(initial=PADDING)) + 1
        self._sorted = np.unique(np.arange(len(own_BT))[:, None] * self._rows + own_BT)

    def has(self, owner: Int[np.ndarray, "*#any"], row: Int[np.ndarray, "*#any"]) -> np.ndarray:
        """Whether each row stands in its owner's sequence."""
        number = owner * self._rows + row
        place = np.minimum(np.searchsorted(self._sorted, number), len(self._sorted) - 1)
        found: np.ndarray = (self._sorted[place] == number) & (row < self._rows)
        return found


def _check_items(row_N: Int[np.ndarray, " N"]) -> None:
    if not len(row_N):
        raise ValueError("no items to draw negatives from; admit items first")
