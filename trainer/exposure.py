"""What other recommenders show: an estimate of a propensity where they log none.

The share of a recommender's requests that showed the item, smoothed, over a window that forgets exponentially
(docs/propensities.md section 4, row "served, p unknown").
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from stream.examples import SlateExample

SMOOTHING = 1.0
MAX_POLICIES = 256


class Shown(msgspec.Struct):
    """What one recommender has shown lately."""

    requests: float = 0.0
    items: dict[str, float] = {}
    """Requests that showed the item."""


class Spread(NamedTuple):
    """Over how many items what was shown is spread, and how evenly."""

    coverage: float
    """Share of the catalogue that was shown at all."""
    gini: float
    """0 where all items of the catalogue were shown equally often, towards 1 where one of them had everything."""


class Exposure(msgspec.Struct):
    """Per recommender, how often each item was in its slates; bounded in recommenders and items."""

    window: int
    """Requests of one recommender after which all its counts are halved."""
    policies: dict[str, Shown] = {}

    def observe(self, slate: SlateExample) -> None:
        """Counts a closed slate; a correction was counted when its slate closed."""
        if slate.correction or (slate.policy not in self.policies and len(self.policies) >= MAX_POLICIES):
            return
        shown = self.policies.setdefault(slate.policy, Shown())
        shown.requests += 1.0
        for item in slate.items:
            shown.items[item.item_id] = shown.items.get(item.item_id, 0.0) + 1.0
        if shown.requests >= self.window:
            _halve(shown)

    def propensity(self, policy: str, item_id: str) -> float:
        """The smoothed share, in (0, 1): a half for a recommender of which no slate is known yet."""
        shown = self.policies.get(policy, Shown())
        return (shown.items.get(item_id, 0.0) + SMOOTHING) / (shown.requests + 2 * SMOOTHING)

    def spread(self, *, items: int) -> Spread | None:
        """Of what all recommenders together showed, over a catalogue of so many items; None where nothing was."""
        showings: defaultdict[str, float] = defaultdict(float)
        for shown in self.policies.values():
            for item_id, count in shown.items.items():
                showings[item_id] += count
        if not showings:
            return None
        items = max(items, len(showings))
        never = items - len(showings)
        return Spread(len(showings) / items, gini(np.fromiter(showings.values(), np.float64), zeros=never))


def gini(count_N: Float[np.ndarray, " N"], *, zeros: int = 0) -> float:
    """0 where all are equal, towards 1 where one has everything; beside the counts, so many that are 0."""
    sorted_N, everything = np.sort(count_N), zeros + len(count_N)
    rank_N = np.arange(zeros + 1, everything + 1)
    return float((2 * rank_N - everything - 1) @ sorted_N / (everything * sorted_N.sum()))


def _halve(shown: Shown) -> None:
    """Forgets half of everything, and altogether what was shown once."""
    shown.requests /= 2
    shown.items = {item_id: count / 2 for item_id, count in shown.items.items() if count > 1.0}
