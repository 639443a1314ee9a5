"""A promoted model is on probation: where it foresees worse than the one before it did, that one comes back.

Compared is the lead in NDCG@10 over item-to-item transitions, click by click: that of the old model on the window
before the promotion, that of the new one on the clicks since. What makes a stream hard to foresee at some hour makes it
so for transitions as well. It is looked at `LOOKS` times while `trainer.probation_clicks` clicks come; `STRIKES` looks
in a row must say, each with confidence, that the new lead is the smaller one. The model that comes back is not on
probation, and nothing but another retrain promotes again: so nothing swings to and fro. Shapes: N clicks.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from trainer.confidence import spreads
from trainer.prequential import RANKERS, Judged, Prequential, gains

LOOKS = 20
STRIKES = 3
Z = 2.576
"""Of the 99 % interval: many looks, each of which may err."""

Finding = Literal["open", "passed", "worse"]


class Lead(msgspec.Struct, frozen=True):
    """The mean lead over some clicks, and its variance."""

    mean: float
    variance: float


class Probation(msgspec.Struct):
    """What is known of a promoted model; part of the checkpoint."""

    champion: str
    """The lineage that was live before it."""
    before: Lead
    lead: list[float] = []
    """Of each click since."""
    weight: list[float] = []
    user: list[int] = []
    looks: int = 0
    strikes: int = 0

    def observe(self, judged: Judged) -> None:
        """Adds clicks that the promoted model has foreseen, or not."""
        self.lead = self.lead + _leads(judged).tolist()
        self.weight = self.weight + judged.weight_N.tolist()
        self.user = self.user + judged.user_N.tolist()

    def look(self, *, clicks: int) -> Finding:
        """What the clicks so far say, `clicks` being those of the whole probation; `worse` is said once and for all."""
        due = len(self.lead) * LOOKS // clicks
        if due <= self.looks:
            return "open"
        self.looks = due
        self.strikes = self.strikes + 1 if self.since().mean + Z * self._error() < self.before.mean else 0
        if self.strikes >= STRIKES:
            return "worse"
        return "passed" if due >= LOOKS else "open"

    def since(self) -> Lead:
        """That of the promoted model."""
        return _lead(np.array(self.lead), np.array(self.weight), np.array(self.user))

    def _error(self) -> float:
        return math.sqrt(self.before.variance + self.since().variance)


def lead_of(prequential: Prequential) -> Lead | None:
    """Over the window, of the model that is live; None where nothing was asked yet."""
    window = prequential.window
    return _lead(_leads(window), window.weight_N, window.user_N) if len(window.user_N) else None


def _leads(judged: Judged) -> np.ndarray:
    gain_NK = gains(judged.rank_NK)
    difference_N: np.ndarray = gain_NK[:, RANKERS.index("sasrec")] - gain_NK[:, RANKERS.index("transitions")]
    return difference_N


def _lead(lead_N: np.ndarray, weight_N: np.ndarray, user_N: np.ndarray) -> Lead:
    (found,) = spreads(lead_N[:, None], weight_N, user_N)
    return Lead(found.mean, found.variance)
