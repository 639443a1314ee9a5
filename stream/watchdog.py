"""Ends a worker that has stopped working without saying so: something waits, and nothing gets finished.

A consumer that dies silently is the best-known fault of stream processors. Whoever supervises the process starts it
again; nothing is lost, because nothing was committed that was not finished.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from stream.metrics import STALLED_SECONDS

log = structlog.get_logger()

LOOK_SECONDS = 1.0
STALLED = 70
"""Exit status: EX_SOFTWARE of sysexits.h."""


class Progress(NamedTuple):
    """How far a worker is, as a number that grows, and whether anything waits for it."""

    finished: int
    is_waited_for: bool


class StallClock:
    """How long nothing was finished though something waited."""

    def __init__(self) -> None:
        self._finished: int | None = None
        self._since = 0.0

    def stalled_for(self, progress: Progress, now: float) -> float:
        """Seconds, zero while work goes on or nothing waits; a rebalance, which changes what counts, is work."""
        if progress.finished != self._finished or not progress.is_waited_for:
            self._finished, self._since = progress.finished, now
        return now - self._since


def progress_of(app: Any) -> Progress:  # noqa: ANN401 - a Faust app
    """Records finished and, while states are recovered, changelog records read."""
    consumer = app._consumer  # noqa: SLF001 - the public name would make one, here in another thread
    if consumer is None:
        return Progress(0, is_waited_for=False)
    finished = dict(consumer.finished())
    recovery = app.tables.recovery
    recovered = sum(offset or 0 for offset in tuple(recovery.active_offsets.values()))
    waits = recovery.in_recovery or any(consumer.has_more(tp, None) for tp in finished)
    return Progress(sum(finished.values()) + recovered, waits)


def watch(progress: Callable[[], Progress], *, patience_seconds: float) -> None:
    """Looks every second from a thread of its own, so that a blocked event loop is seen as well."""
    threading.Thread(target=_watch, args=(progress, patience_seconds), name="watchdog", daemon=True).start()


def _watch(progress: Callable[[], Progress], patience_seconds: float) -> None:
    clock = StallClock()
    while True:
        time.sleep(LOOK_SECONDS)
        stalled = clock.stalled_for(progress(), time.monotonic())
        STALLED_SECONDS.set(stalled)
        if stalled > patience_seconds:
            log.critical("nothing finished though records wait; the process ends to be started again", seconds=stalled)
            os._exit(STALLED)
