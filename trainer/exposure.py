"""What other recommenders show: an estimate of a propensity where they log none.

The share of a recommender's requests that showed the item, smoothed, over a window that forgets exponentially
(docs/propensities.md section 4, row "served, p unknown").
"""

from __future__ import annotations

import msgspec

from stream.examples import SlateExample

SMOOTHING = 1.0
MAX_POLICIES = 256


class Shown(msgspec.Struct):
    """What one recommender has shown lately."""

    requests: float = 0.0
    items: dict[str, float] = {}
    """Requests that showed the item."""


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


def _halve(shown: Shown) -> None:
    """Forgets half of everything, and altogether what was shown once."""
    shown.requests /= 2
    shown.items = {item_id: count / 2 for item_id, count in shown.items.items() if count > 1.0}
