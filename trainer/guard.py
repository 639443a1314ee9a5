"""Notices that learning goes wrong: a micro-batch whose loss stands far above those before it.

The robust z-score of a loss l over n examples is `(l - median) sqrt(n) / (1.4826 MAD)`, with the median of the last
losses and the median of their absolute deviations, each scaled by the root of its own n: a mean over few examples
scatters more. Only what lies above counts; 1.4826 makes it a standard deviation where losses are normal (Rousseeuw &
Croux 1993).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

WINDOW = 256
"""Micro-batches that a loss is held against."""
WARM_UP = 32
"""Micro-batches before anything is held against them."""
NORMAL = 1.4826
SMALLEST_SPREAD = 0.02
"""Of the median loss: a stream that is foreseen perfectly has no spread, and not every ripple is a spike."""
RECOVERY = 5
"""Micro-batches in a row without a spike that end a run of spikes."""


class Guard(msgspec.Struct):
    """The last losses; part of the checkpoint, because what is refused depends on them."""

    losses: list[float] = []
    sizes: list[int] = []
    batches: int = 0
    """Micro-batches learnt since the lineage began."""
    wary: list[int] = []
    """Which of the last ones were learnt warily; whoever learns them again must do the same (trainer/rerun.py)."""

    def count(self, *, wary: bool) -> None:
        """One more micro-batch."""
        if wary:
            self.wary = [*self.wary, self.batches][-WINDOW:]
        self.batches += 1

    def z_score(self, loss: float, *, examples: int) -> float:
        """How far above the usual a loss lies, in robust standard deviations; 0 while too little is known."""
        centre, spread = self._usual()
        if not math.isfinite(spread):
            return 0.0
        return (loss - centre) * math.sqrt(max(1, examples)) / spread

    def ceiling(self, z_score: float, *, examples: int) -> float:
        """The loss that has this score; infinite while too little is known."""
        centre, spread = self._usual()
        return centre + z_score * spread / math.sqrt(max(1, examples))

    def remember(self, loss: float, *, examples: int) -> None:
        """Adds a loss that is no spike."""
        self.losses = [*self.losses, loss][-WINDOW:]
        self.sizes = [*self.sizes, max(1, examples)][-WINDOW:]

    def begin_anew(self) -> None:
        """Takes whatever comes for the usual: the world has changed."""
        self.losses, self.sizes = [], []

    def _usual(self) -> tuple[float, float]:
        if len(self.losses) < WARM_UP:
            return 0.0, math.inf
        loss_W, size_W = np.array(self.losses), np.array(self.sizes)
        centre = float(np.median(loss_W))
        deviation = float(np.median(np.abs(loss_W - centre) * np.sqrt(size_W)))
        floor = SMALLEST_SPREAD * abs(centre) * math.sqrt(float(np.median(size_W)))
        return centre, max(NORMAL * deviation, floor, 1e-9)


class Run(msgspec.Struct):
    """Spikes in close succession, since the last cut that is known to be good. Never in a checkpoint."""

    spikes: int = 0
    quiet: int = 0

    def observe(self, *, spike: bool) -> None:
        """One more micro-batch."""
        self.spikes += spike
        self.quiet = 0 if spike else self.quiet + 1
        if self.quiet >= RECOVERY:
            self.spikes = 0

    @property
    def is_open(self) -> bool:
        """Whether it is not known yet what becomes of it: nothing may be published meanwhile."""
        return self.spikes > 0
