"""A trainer in a process of its own, to be killed: doomed_trainer.py BOOTSTRAP PREFIX CHECKPOINTS."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from model.settings import ModelSettings
from stream.settings import KafkaSettings
from trainer.loop import run_trainer
from trainer.settings import TrainerSettings

MODEL = ModelSettings(max_length=8, units=16, blocks=1)
TRAINER = TrainerSettings(
    negatives=16,
    min_batch=8,
    max_batch=64,
    catch_up_batch=64,
    max_wait_seconds=0.05,
    publish_seconds=0.05,
    full_seconds=0.2,
)


def main(bootstrap: str, prefix: str, checkpoints: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=2)
    run_trainer(kafka, MODEL, TRAINER, checkpoints=Path(checkpoints), stop=stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
