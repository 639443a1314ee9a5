"""Ends a worker that has stopped working without saying so: something waits, and nothing gets finished.

A consumer that dies silently is the best-known fault of stream processors. Whoever supervises the process starts it
again; nothing is lost, because nothing was committed that was not finished.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog

from stream.metrics import STALLED_SECONDS

log = structlog.get_logger()

LOOK_SECONDS = 1.0
STALLED = 70
"""Exit status: EX_SOFTWARE of sysexits.h."""

Part = int | str
"""A partition number, or `RECOVERY`."""
RECOVERY = "recovery"


class Progress(NamedTuple):
    """How far a worker is, as a number that grows, and whether anything waits for it."""

    finished: int
    is_waited_for: bool


class StallClock:
    """How long nothing was finished of one part though something waited."""

    def __init__(self) -> None:
        self._finished: int | None = None
        self._since = 0.0

    def stalled_for(self, progress: Progress, now: float) -> float:
        """Seconds, zero while work goes on or nothing waits; a rebalance, which changes what counts, is work."""
        if progress.finished != self._finished or not progress.is_waited_for:
            self._finished, self._since = progress.finished, now
        return now - self._since


class StallClocks:
    """One for every part, so that one that stands still is seen while others move."""

    def __init__(self) -> None:
        self._clocks: dict[Part, StallClock] = {}

    def stalled_for(self, parts: Mapping[Part, Progress], now: float) -> dict[Part, float]:
        """Seconds of each part; what is no part any more, as its partition went to somebody else, is forgotten."""
        self._clocks = {part: self._clocks.get(part, StallClock()) for part in parts}
        return {part: self._clocks[part].stalled_for(progress, now) for part, progress in parts.items()}


def progress_of(app: Any) -> dict[Part, Progress]:  # noqa: ANN401 - a Faust app
    """Records finished of each partition number, over all topics: one waits for another while there are older ones.

    While states are recovered nothing is finished, and changelog records read are what moves.
    """
    consumer = app._consumer  # noqa: SLF001 - the public name would make one, here in another thread
    if consumer is None:
        return {}
    recovery = app.tables.recovery
    if recovery.in_recovery:
        recovered = sum(offset or 0 for offset in tuple(recovery.active_offsets.values()))
        return {RECOVERY: Progress(recovered, is_waited_for=True)}
    finished = dict(consumer.finished())
    waiting = {tp.partition for tp in finished if consumer.has_more(tp, None)}
    return {
        partition: Progress(
            sum(behind for tp, behind in finished.items() if tp.partition == partition), partition in waiting
        )
        for partition in {tp.partition for tp in finished}
    }


def watch(progress: Callable[[], Mapping[Part, Progress]], *, patience_seconds: float) -> None:
    """Looks every second from a thread of its own, so that a blocked event loop is seen as well."""
    threading.Thread(target=_watch, args=(progress, patience_seconds), name="watchdog", daemon=True).start()


def _watch(progress: Callable[[], Mapping[Part, Progress]], patience_seconds: float) -> None:
    clocks = StallClocks()
    while True:
        time.sleep(LOOK_SECONDS)
        stalled = clocks.stalled_for(progress(), time.monotonic())
        longest = max(stalled.values(), default=0.0)
        STALLED_SECONDS.set(longest)
        if longest > patience_seconds:
            parts = [part for part, seconds in stalled.items() if seconds > patience_seconds]
            log.critical(
                "nothing finished though records wait; the process ends to be started again",
                seconds=longest,
                partitions=parts,
            )
            os._exit(STALLED)
