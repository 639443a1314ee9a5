"""Who gets a request: every user is of one recommender, by a stable hash, each with its share (an A/B split).

The share is the probability that the recommender got the request: over the choice of `salt` every user had that chance
of it. Given one, a user stays with one recommender, on every machine and after every restart. Shapes: B users, K slots,
A recommenders.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

HASH_BYTES = 8
SLACK = 1e-9


class Router:
    """Recommenders and their shares of the users; the shares add up to one.

    Raises:
        ValueError: a share outside (0, 1], or shares that do not add up.
    """

    def __init__(self, shares: Mapping[str, float], *, salt: str = "") -> None:
        if any(not 0.0 < share <= 1.0 for share in shares.values()):
            raise ValueError(f"shares {dict(shares)}: each must be above 0 and at most 1; leave out who gets nothing")
        if not math.isclose(sum(shares.values()), 1.0, abs_tol=SLACK):
            raise ValueError(f"shares {dict(shares)} add up to {sum(shares.values()):g}; make them 1")
        self.shares = dict(shares)
        self._salt = salt.encode()
        self._names = list(shares)
        self._bounds = list(itertools.accumulate(shares.values()))

    def choose(self, user_id: str) -> str:
        """The user's recommender: the one whose part of [0, 1) holds the hash."""
        if len(self._names) == 1:
            return self._names[0]
        place = user_place(user_id, salt=self._salt)
        return next((name for name, bound in zip(self._names, self._bounds, strict=True) if place < bound), self._last)

    @property
    def _last(self) -> str:
        """Rounding may leave the last bound a little below 1."""
        return self._names[-1]


def user_place(user_id: str, *, salt: bytes) -> float:
    """In [0, 1): BLAKE2b of the user's id in UTF-8, keyed with the salt, its first 8 bytes big-endian over 2^64.

    Another recommender that computes the same knows which users are its own.
    """
    digest = hashlib.blake2b(user_id.encode(), digest_size=HASH_BYTES, key=salt[: hashlib.blake2b.MAX_KEY_SIZE])
    return (int.from_bytes(digest.digest(), "big") >> 11) * 2.0**-53


def of_the_surface(
    share_A: Float[np.ndarray, " A"], propensity_ABK: Float[np.ndarray, "A B K"]
) -> Float[np.ndarray, "B K"]:
    """`sum_a rho_a p_a / sum_a rho_a`: the chance that one of these recommenders shows the item.

    With each p given the noise of that recommender's other items, `E[1{served} / p] = 1` over the recommenders, too:
    who got the request is drawn from none of that noise (the balance heuristic, Agarwal et al. 2017).
    """
    mixed_BK: np.ndarray = np.tensordot(share_A / share_A.sum(), propensity_ABK, axes=1)
    return mixed_BK
