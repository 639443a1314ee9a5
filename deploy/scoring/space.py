"""What may be served from a shelf, and in which row it stands: rows of its item table, and behind them newcomers.

A newcomer is described on `items` and was never clicked, so no model has a row for it. It has no score, but it is
eligible like any other: exploration draws it with the same exact propensity. Shapes: R rows of the item table, A of
these and newcomers, N rows that may be served, P items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from deploy.scoring.shelf import Shelf
from model.catalogue import PADDING

NO_CATEGORY = -1


class Space:
    """One shelf with one state of `items`; made anew when either changes.

    `before` is the space of the shelf before, of the same `available`: then only its newcomers are looked at, for a
    model changes every second. (What the catalogue evicts meanwhile is a newcomer again at the next change of `items`.)
    """

    def __init__(
        self, shelf: Shelf, *, withdrawn: frozenset[str], available: frozenset[str], before: Space | None = None
    ) -> None:
        self.shelf = shelf
        self.size = len(shelf.live_R)
        self.newcomers, self.place_of_newcomer = _newcomers(shelf, available, before)
        self.live_A = np.concatenate((shelf.live_R, np.ones(len(self.newcomers), dtype=np.bool_)))
        self.live_A[self.rows_of(withdrawn)] = False
        self.live_A[PADDING] = False
        self.row_N = np.flatnonzero(self.live_A)

    def rows_of(self, item_ids: Iterable[str]) -> np.ndarray:
        """The items' rows in order, PADDING for each that is neither in the catalogue nor described."""
        named = list(item_ids)
        row_P = self.shelf.catalogue.rows_of(named)
        if self.newcomers:
            for place in np.flatnonzero(row_P == PADDING).tolist():
                newcomer = self.place_of_newcomer.get(named[place])
                row_P[place] = PADDING if newcomer is None else self.size + newcomer
        return row_P

    def item_of(self, row: int) -> str:
        """The item in a row.

        Raises:
            LookupError: padding, a tombstone or beyond the table.
        """
        return self.newcomers[row - self.size] if row >= self.size else self.shelf.catalogue.item_of(row)

    def in_table(self, row_X: np.ndarray) -> np.ndarray:
        """Those that a search of the table can meet: no newcomers."""
        within_X: np.ndarray = row_X[row_X < self.size]
        return within_X

    def categories(self, category_of: Mapping[str, str]) -> np.ndarray:
        """A number for the category of every row that may be served, -1 where `items` names none."""
        number_of: dict[str, int] = {}
        category_A = np.full(len(self.live_A), NO_CATEGORY, dtype=np.int64)
        for row in self.row_N.tolist():
            category = category_of.get(self.item_of(row))
            if category is not None:
                category_A[row] = number_of.setdefault(category, len(number_of))
        return category_A


def _newcomers(shelf: Shelf, available: frozenset[str], before: Space | None) -> tuple[list[str], dict[str, int]]:
    """What the catalogue has no row for, in order, and the place of each; mostly what it was before."""
    pool = sorted(available) if before is None else before.newcomers
    row_P = shelf.catalogue.rows_of(pool)
    if before is not None and not row_P.any():
        return before.newcomers, before.place_of_newcomer
    newcomers = [pool[place] for place in np.flatnonzero(row_P == PADDING).tolist()]
    return newcomers, {item_id: place for place, item_id in enumerate(newcomers)}
