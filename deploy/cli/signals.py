"""How a process of ours learns that it shall end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Set by SIGTERM or Ctrl-C; a second one changes nothing."""
    stop = threading.Event()
    before = [signal.signal(number, lambda *_: stop.set()) for number in SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def end_at_once_on_signals() -> None:
    """Until somebody else handles them: what has not begun yet has nothing to finish."""
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(_number: int, _frame: object) -> None:
    raise SystemExit(0)
