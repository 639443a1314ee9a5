"""What was shown lately, slot by slot: how often, and how often it was clicked (docs/propensities.md section 5).

Counts over the last closed slates, by why an item was shown and where it stood; of bounded size, and forgetting
exponentially. A slate that nobody looked at and nobody clicked is never told (stream/slates.py), so it is not in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import msgspec

from stream.events import Source
from stream.examples import ShownItem, SlateExample
from trainer.positions import PLACES, explored_factors, place_of

SOURCES: tuple[Source, ...] = get_args(Source)


class Cell(NamedTuple):
    """Slots of one source at one position."""

    source: Source
    place: str
    shown: float
    clicked: float

    @property
    def rate(self) -> float:
        """Clicks per slot; NaN where none was shown."""
        return self.clicked / self.shown if self.shown else math.nan


class Tally(msgspec.Struct):
    """Of one source, by place."""

    shown: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(PLACES))
    clicked: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(PLACES))

    def halve(self) -> None:
        """Forgets half of everything."""
        self.shown = [count / 2 for count in self.shown]
        self.clicked = [count / 2 for count in self.clicked]

    def rate(self) -> float:
        """Clicks per slot, wherever it stood; NaN where none was shown."""
        return sum(self.clicked) / sum(self.shown) if any(self.shown) else math.nan


class Slots(msgspec.Struct):
    """How often slots were shown and clicked, by source and position."""

    window: int = 10_000
    """Slates after which all counts are halved."""
    slates: float = 0.0
    tallies: dict[Source, Tally] = msgspec.field(default_factory=lambda: {source: Tally() for source in SOURCES})

    def observe(self, slate: SlateExample) -> None:
        """Counts a closed slate; of a correction only the clicks, for its slots were counted when the slate closed."""
        self._count(slate.items, shown=0.0 if slate.correction else 1.0)
        if slate.correction:
            return
        self.slates += 1.0
        if self.slates >= self.window:
            self.slates /= 2
            for tally in self.tallies.values():
                tally.halve()

    def _count(self, items: Sequence[ShownItem], *, shown: float) -> None:
        for item in items:
            tally, place = self.tallies[item.source], place_of(item.position)
            tally.shown[place] += shown
            tally.clicked[place] += item.clicked

    def cells(self) -> Iterator[Cell]:
        """Every source at every position, also where nothing was shown."""
        for source, tally in self.tallies.items():
            for place, shown, clicked in zip(PLACES, tally.shown, tally.clicked, strict=True):
                yield Cell(source, place, shown, clicked)

    def explored_over_exploited(self) -> float:
        """Clicks per explored slot over clicks per exploited slot: 1 where exploring costs nothing; NaN if unknown."""
        explored, exploited = self.tallies["explore"].rate(), self.tallies["exploit"].rate()
        return explored / exploited if exploited else math.nan

    def examination_factors(self, *, bias: float) -> tuple[float, ...]:
        """By place, how theta by the setting is to be corrected, as far as explored slots tell."""
        explored = self.tallies["explore"]
        return explored_factors(explored.shown, explored.clicked, bias=bias)
