"""One trainer per folder of checkpoints: two would write the same versions and each undo what the other learnt."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "trainer.lock"


@contextmanager
def only_trainer(checkpoints: Path) -> Iterator[None]:
    """Holds the folder until the process ends, however it ends.

    Raises:
        ValueError: another trainer holds it.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (checkpoints / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"another trainer (pid {file.read().strip()}) works in {checkpoints}; stop it, or give this one a "
                "state.directory of its own"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
