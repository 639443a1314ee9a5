"""Dropout that is cheap, independent and repeatable: whether a unit is dropped is a function of four numbers.

Drawing bits with torch's `bernoulli_` is a third of a naive training step on a CPU. Here a pass over the network draws
one seed from the generator that is passed in; the bits follow from it by counter, with the finaliser of SplitMix64
(Steele, Lea & Flood 2014): four decisions from a number of 64 bits. So they are the same on every device, for every
number of threads, in whatever order and layout positions are computed, and no mask needs to be kept for the way back.

Shapes: D units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

DECISIONS = 1 << 16
"""A unit is dropped where 16 random bits fall below `rate * DECISIONS`, rounded."""
DECISIONS_PER_NUMBER = 4

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class Dropout(NamedTuple):
    """Which units one pass over the network drops."""

    rate: float
    seed: int

    @classmethod
    def drawn(cls, rate: float, rng: np.random.Generator | None) -> Dropout | None:
        """That of the next pass; None, nothing is dropped, without a generator (prediction) or a rate."""
        if rng is None or rate == 0.0:
            return None
        return cls(rate, int.from_bytes(rng.bytes(8), "little"))

    @property
    def dropped(self) -> int:
        """Of `DECISIONS` units."""
        return round(self.rate * DECISIONS)

    @property
    def factor(self) -> float:
        """What the others are multiplied by, so that the expectation stays."""
        return DECISIONS / (DECISIONS - self.dropped)

    def mask(
        self, position: Int[np.ndarray, "*any"], *, like: Float[Tensor, "*any D"], site: int
    ) -> Float[Tensor, "*any D"]:
        """Zero where a unit of a position is dropped at that site of the network, else `factor`.

        Positions are counted through the whole batch; each site has a number of its own. Width, kind and device are
        those of `like`.
        """
        units = like.shape[-1]
        key = _mixed_number(self.seed + (site + 1) * _GOLDEN & _WORD)
        words = -(-units // DECISIONS_PER_NUMBER)
        counter = position.astype(np.uint64)[..., None] * np.uint64(words) + np.arange(words, dtype=np.uint64)
        bits = _mixed(counter * np.uint64(_GOLDEN) + np.uint64(key)).view(np.uint16)[..., :units]
        keep = np.multiply(bits >= self.dropped, np.float32(self.factor))
        return torch.from_numpy(keep).to(device=like.device, dtype=like.dtype)


def _mixed(number: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """SplitMix64's finaliser, modulo 2 ** 64, in place."""
    number ^= number >> np.uint64(30)
    number *= np.uint64(0xBF58476D1CE4E5B9)
    number ^= number >> np.uint64(27)
    number *= np.uint64(0x94D049BB133111EB)
    number ^= number >> np.uint64(31)
    return number


def _mixed_number(number: int) -> int:
    return int(_mixed(np.array([number], dtype=np.uint64))[0])
