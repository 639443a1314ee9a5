"""A trainer in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stream.events import ModelAnnouncement
from stream.settings import KafkaSettings
from tests.trainer.doomed_trainer import MODEL, TRAINER
from trainer.loop import run_trainer
from trainer.settings import TrainerSettings


@contextmanager
def running(
    kafka: KafkaSettings, checkpoints: Path, settings: TrainerSettings = TRAINER
) -> Iterator[list[ModelAnnouncement]]:
    """What it publishes is in the list. An error of the trainer is raised here."""
    torch.set_num_threads(1)
    stop, published, failed = threading.Event(), list[ModelAnnouncement](), list[BaseException]()

    def work() -> None:
        try:
            run_trainer(kafka, MODEL, settings, checkpoints=checkpoints, stop=stop, on_published=published.append)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield published
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def trained(published: list[ModelAnnouncement], count: int) -> Callable[[], bool]:
    """Whether so many examples were learnt and published."""
    return lambda: bool(published) and published[-1].examples_trained >= count
