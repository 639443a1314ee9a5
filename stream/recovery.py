"""Fills the store from `sequences`, chunk by chunk, and says how far it is.

Faust restores a table record by record, which for a million users takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import structlog
from faust.types import TP

from stream import metrics
from stream.store import StateStore, last_rows

log = structlog.get_logger()

REPORT_SECONDS = 2.0


class Recovery:
    """Takes over chunks of `sequences`; what the disk had already changes nothing."""

    def __init__(self, app: Any, store: StateStore) -> None:  # noqa: ANN401 - a Faust app
        self._app = app
        self._store = store
        self._said_at = time.monotonic()
        self._restored = 0

    def restore(self, tp: TP, records: Sequence[Any]) -> None:
        """Writes what the records say last of each user.

        Raises:
            ValueError: a state that this version cannot read.
        """
        rows = self._store.partition(tp.partition)
        known = rows.changelog_offset()
        new = [record for record in records if record.offset > known]
        if new:
            rows.restore(last_rows(new), changelog_offset=new[-1].offset)
        self._restored += len(new)
        metrics.RESTORED.inc(len(new))
        self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._said_at + REPORT_SECONDS:
            return
        self._said_at = now
        # The store is ahead of what Faust knows by the chunk that is in hand, which does not matter here.
        left = self._app.tables.recovery.active_remaining_total()
        log.info("restoring the users' states from sequences", restored=self._restored, left=max(left, 0))
