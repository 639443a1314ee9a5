"""Dropout that is cheap, independent and repeatable: whether a unit is dropped is a function of four numbers.

Drawing bits with torch's `bernoulli_` is a third of a naive training step on a CPU. Here a pass over the network draws
one seed from the generator that is passed in; the bits follow from it by counter, with the finaliser of SplitMix64
(Steele, Lea & Flood 2014): four decisions from a number of 64 bits. So they are the same on every device, for every
number of threads, in whatever order and layout positions are computed, and no mask needs to be kept for the way back.

Shapes: B sequences, S slots, D units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor

from model.moving import moved

DECISIONS = 1 << 16
"""A unit is dropped where 16 random bits fall below `rate * DECISIONS`, rounded."""
DECISIONS_PER_NUMBER = 4

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
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
        self, position: Int[np.ndarray, "*any"], *, like: Float[Tensor, "... D"], site: int
    ) -> Float[Tensor, "*any D"]:
        """Zero where a unit of a position is dropped at that site of the network, else `factor`.

        Positions are counted through the whole batch; each site has a number of its own. Width, kind and device are
        those of `like`. Bits are made where they are needed: by numpy for a CPU, else on the device.
        """
        units = like.shape[-1]
        key = _mixed_number(self.seed + (site + 1) * _GOLDEN & _WORD)
        words = -(-units // DECISIONS_PER_NUMBER)
        if like.device.type != "cpu":
            is_kept = kept_by_torch(moved(torch.from_numpy(position), like.device), key, units, self.dropped)
            return is_kept * torch.tensor(self.factor, dtype=like.dtype, device=like.device)
        counter = position.astype(np.uint64)[..., None] * np.uint64(words) + np.arange(words, dtype=np.uint64)
        bits = _mixed(counter * np.uint64(_GOLDEN) + np.uint64(key)).view(np.uint16)[..., :units]
        keep = np.multiply(bits >= self.dropped, np.float32(self.factor))
        return torch.from_numpy(keep).to(dtype=like.dtype)


class Kept(NamedTuple):
    """What dropout leaves of the two sub-layers of a block: 0 where a unit is dropped."""

    attended_BSD: Float[Tensor, "B S D"]
    forwarded_BSD: Float[Tensor, "B S D"]


def kept_by_torch(position: Int[Tensor, "*any"], key: int, units: int, dropped: int) -> Bool[Tensor, "*any D"]:
    """The same bits in torch, which knows no unsigned words: products wrap alike, shifts are made logical."""
    words = -(-units // DECISIONS_PER_NUMBER)
    counter = position[..., None] * words + torch.arange(words, device=position.device)
    number = counter * _signed(_GOLDEN) + _signed(key)
    number = (number ^ _shifted(number, 30)) * _signed(_FIRST)
    number = (number ^ _shifted(number, 27)) * _signed(_SECOND)
    number = number ^ _shifted(number, 31)
    bits = torch.stack([_shifted(number, 16 * part) & (DECISIONS - 1) for part in range(DECISIONS_PER_NUMBER)], dim=-1)
    return bits.flatten(-2)[..., :units] >= dropped


def _shifted(number: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (number >> bits) & (_WORD >> bits) if bits else number


def _signed(word: int) -> int:
    """The signed number of the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _mixed(number: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """SplitMix64's finaliser, modulo 2 ** 64, in place."""
    number ^= number >> np.uint64(30)
    number *= np.uint64(_FIRST)
    number ^= number >> np.uint64(27)
    number *= np.uint64(_SECOND)
    number ^= number >> np.uint64(31)
    return number


def _mixed_number(number: int) -> int:
    return int(_mixed(np.array([number], dtype=np.uint64))[0])
