"""Recorded micro-batches, learnt again, end in the same bytes (I9)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, in_batches, send
from tests.trainer.doomed_trainer import TRAINER
from tests.trainer.running import running, trained
from trainer.rerun import rerun

pytestmark = pytest.mark.broker

Wait = Callable[[Callable[[], Any]], Any]


def test_what_lies_between_two_checkpoints_is_learnt_again_to_the_byte(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    examples = clicks(400, partitions=2)
    with running(kafka, tmp_path) as published:
        for nth, batch in enumerate(in_batches(examples, 100), start=1):
            send(kafka, batch)
            send(kafka, batch[50:])
            wait_until(trained(published, 100 * nth))
    versions = sorted(path for path in (tmp_path / published[-1].lineage).iterdir() if path.name.isdigit())[-3:]

    again = rerun(kafka, TRAINER, before=versions[0], after=versions[1])
    then = rerun(kafka, TRAINER, before=versions[1], after=versions[2])

    assert (again.differing, then.differing) == ([], [])
    assert again.micro_batches >= 1 <= then.micro_batches
    assert "model.safetensors" in again.recorded

    other = rerun(kafka, TRAINER.model_copy(update={"learning_rate": 0.1}), before=versions[1], after=versions[2])
    assert "model.safetensors" in other.differing
    with pytest.raises(ValueError, match="does not follow"):
        rerun(kafka, TRAINER, before=versions[0], after=versions[2])
