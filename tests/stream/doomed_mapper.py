"""Runs the mapper as a process of its own, which can kill itself at a step of its protocol.

    python doomed_mapper.py BOOTSTRAP PREFIX MAPPING [STEP TRANSACTIONS]

MAPPING is the settings section as JSON. With STEP, the process ends as by kill -9 after that step of the
TRANSACTIONS-th transaction.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from kafka import KafkaProducer

from stream.mapping import worker
from stream.mapping.settings import MappingSettings
from stream.settings import KafkaSettings


def doom(step: str, transactions: int) -> None:
    """Lets the producer's method of that name be the last thing that happens."""
    left = [transactions]
    original = getattr(KafkaProducer, step)

    def doomed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - passed on as they are
        done = original(*arguments, **named)
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(KafkaProducer, step, doomed)


def main() -> None:
    bootstrap_servers, prefix, mapping, *doomed = sys.argv[1:]
    if doomed:
        doom(doomed[0], int(doomed[1]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker.run_mapper(
        KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix, partitions=2),
        MappingSettings.model_validate_json(mapping),
        stop,
        member="the-mapper",
        on_ready=lambda: print("ready", flush=True),  # noqa: T201 - the test waits for it
    )


if __name__ == "__main__":
    main()
