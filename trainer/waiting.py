"""Items that were clicked too rarely to be worth a row yet: `trainer.admit_after`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Waiting(msgspec.Struct):
    """How often each was clicked, exactly; part of the checkpoint.

    Past the bound the least recently clicked one is forgotten, and begins from nothing should it come again.
    """

    clicks: dict[str, int] = {}
    """Least recently clicked first."""

    def ready(self, item_ids: Iterable[str], *, after: int, most: int) -> dict[str, None]:
        """Counts a click on each of these items without a row; those that have had enough, and wait no longer."""
        ready: dict[str, None] = {}
        for item_id in item_ids:
            if item_id in ready:
                continue
            clicks = self.clicks.pop(item_id, 0) + 1
            if clicks >= after:
                ready[item_id] = None
            else:
                self.clicks[item_id] = clicks
        for item_id in list(self.clicks)[: max(0, len(self.clicks) - most)]:
            del self.clicks[item_id]
        return ready
