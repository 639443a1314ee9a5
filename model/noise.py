"""Random numbers for many users at once, each from a seed of its own: the same alone or in company.

A number is a hash of (seed, stream, index): SplitMix64's finaliser (Steele, Lea & Flood 2014) over a Weyl sequence. So
what a user gets depends on nobody else, no generator is set up per user, and a whole batch is drawn by a few array
operations. Shapes: B users, L numbers each.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt64

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-52
_LARGEST = 1.0 - 2.0**-53


@runtime_checkable
class Noise(Protocol):
    """Where a batch of draws takes its numbers from."""

    def uniform(self, stream: int, start: int, stop: int) -> Float[np.ndarray, "B L"]:
        """Numbers `start` to `stop` of a stream, in (0, 1), for every user; ask for each number once."""

    def of(self, user_S: Int[np.ndarray, " S"]) -> Noise:
        """The numbers of some of the users."""


class Seeded:
    """One seed per user; asking again gives the same numbers."""

    def __init__(self, seed_B: UInt64[np.ndarray, " B"]) -> None:
        self._seed_B = seed_B

    def uniform(self, stream: int, start: int, stop: int) -> Float[np.ndarray, "B L"]:
        """A function of seed, stream and index alone."""
        state_B = _mixed(self._seed_B + np.full(1, stream + 1, dtype=np.uint64) * _WEYL)
        index_L = np.arange(start, stop, dtype=np.uint64) * _WEYL
        bits_BL = _mixed(state_B[:, None] + index_L)
        bits_BL >>= np.uint64(12)
        return _unit(bits_BL)

    def of(self, user_S: Int[np.ndarray, " S"]) -> Seeded:
        """These users' seeds."""
        return Seeded(self._seed_B[user_S])


class Generated:
    """Fresh numbers from one generator, whatever they are asked for: for simulations."""

    def __init__(self, rng: np.random.Generator, users: int) -> None:
        self._rng = rng
        self._users = users

    def uniform(self, stream: int, start: int, stop: int) -> Float[np.ndarray, "B L"]:  # noqa: ARG002 - see Noise
        """A generator's [0, 1), turned round and kept below 1."""
        drawn_BL: np.ndarray = np.minimum(1.0 - self._rng.random((self._users, stop - start)), _LARGEST)
        return drawn_BL

    def of(self, user_S: Int[np.ndarray, " S"]) -> Generated:
        """As many users as are named."""
        return Generated(self._rng, len(user_S))


def _mixed(bits: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """SplitMix64's finaliser, in place on a fresh array; arithmetic wraps, as it shall."""
    bits ^= bits >> np.uint64(30)
    bits *= _FIRST
    bits ^= bits >> np.uint64(27)
    bits *= _SECOND
    bits ^= bits >> np.uint64(31)
    return bits


def _unit(bits_BL: UInt64[np.ndarray, "B L"]) -> Float[np.ndarray, "B L"]:
    """52 bits to the middle of their interval, so that neither 0 nor 1 comes up."""
    unit_BL = bits_BL.astype(np.float64)
    unit_BL += 0.5
    unit_BL *= _TO_UNIT
    return unit_BL
