"""theta_k, the chance that slot k is looked at: from a setting, or corrected by what explored slots show.

Explored items are drawn at random and put into random slots, so that where they are clicked more often tells how often
a position is looked at, whatever is liked (docs/propensities.md section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MIN_EXAMINATION = 0.05
POSITIONS = 10
"""Positions that are told apart where slots are counted."""
BEYOND, UNKNOWN = POSITIONS, POSITIONS + 1
PLACES: tuple[str, ...] = (*map(str, range(POSITIONS)), f"{POSITIONS}+", "unknown")
PRIOR_CLICKS = 10.0
"""So many clicks of a position speak as loudly as the setting."""


def place_of(position: int | None) -> int:
    """Where a position stands among `PLACES`."""
    return UNKNOWN if position is None else min(max(position, 0), BEYOND)


def examination(position: int | None, *, bias: float, factors: Sequence[float] = ()) -> float:
    """theta_k = 1 / (k + 1) ** bias, times the factor of its place; never below 0.05; NaN where the slot is unknown."""
    if position is None:
        return math.nan
    theta: float = (position + 1.0) ** -bias
    return max(MIN_EXAMINATION, theta * factors[place_of(position)] if factors else theta)


def explored_factors(shown: Sequence[float], clicked: Sequence[float], *, bias: float) -> tuple[float, ...]:
    """By place, how much more often explored slots were clicked than theta by the setting would have it.

    `(clicks + 10) / (expected clicks + 10)`: a place with few clicks stays near the setting. The largest theta is 1.
    """
    theta = [examination(place, bias=bias) for place in range(UNKNOWN)]
    looks = [slots * chance for slots, chance in zip(shown, theta, strict=False)]
    rate = sum(clicked[:UNKNOWN]) / sum(looks) if any(looks) else 0.0
    raw = [(clicks + PRIOR_CLICKS) / (rate * look + PRIOR_CLICKS) for clicks, look in zip(clicked, looks, strict=False)]
    largest = max(chance * factor for chance, factor in zip(theta, raw, strict=True))
    return (*(factor / largest for factor in raw), 1.0)
