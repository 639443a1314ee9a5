"""A child ends with its supervisor, however that one ended: its standard input is a pipe that only the parent holds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import IO

GRACE_SECONDS = 5.0


def tie_to_parent(pipe: IO[str] = sys.stdin) -> None:
    """Asks this process to end once `pipe` closes, and kills it where that takes too long.

    Portable, and no matter of threads: the kernel's parent-death signal (Linux) would also come when the *thread*
    that started the child ends.
    """
    threading.Thread(target=_end_after, args=(pipe,), name="tether", daemon=True).start()


def _end_after(pipe: IO[str]) -> None:
    while os.read(pipe.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
