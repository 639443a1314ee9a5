"""Two copies of the serving model that take turns: a delta changes the one that nobody reads.

The copy behind is one swap late, so it gets the deltas of that swap first and then the new ones. What a swap costs
follows the rows that changed, and not the catalogue; the price is memory for two item tables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from model.checkpoint import ServingModel
from model.delta import Delta, apply_delta


class Buffers:
    """The model in front, and its copy behind."""

    def __init__(self, front: ServingModel) -> None:
        self.front = front
        self._behind: ServingModel | None = None
        self._missed: list[Delta] = []

    def advance(self, deltas: Sequence[Delta], *, wait_until_unread: Callable[[], None]) -> ServingModel:
        """Brings the copy behind to the newest version and to the front; the former front becomes the copy behind.

        Raises:
            BrokenCheckpointError: a delta does not fit; the front stays as it is.
        """
        behind, missed = self._behind, self._missed
        self._behind, self._missed = None, []
        if behind is None:
            behind = ServingModel(copy.deepcopy(self.front.model), self.front.catalogue.copy(), self.front.manifest)
        else:
            wait_until_unread()
        for delta in (*missed, *deltas):
            behind = apply_delta(behind, delta)
        self._behind, self.front = self.front, behind
        self._missed = list(deltas)
        return self.front
