"""Two processes, started by torchrun, are one trainer; when one is killed, both begin again from the last cut."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.checkpoint import newest_checkpoint
from stream.events import ModelAnnouncement
from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, send
from trainer.examples import newest_announcement
from trainer.state import read_cut

pytestmark = pytest.mark.broker

Wait = Callable[[Callable[[], Any]], Any]


@contextmanager
def crew(kafka: KafkaSettings, checkpoints: Path) -> Iterator[psutil.Process]:
    """torchrun with two processes; at the end they are asked to stop, and must end well."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    trainer = ["-m", "tests.trainer.doomed_trainer", kafka.bootstrap_servers, kafka.topic_prefix, str(checkpoints)]
    with subprocess.Popen([*torchrun, *trainer]) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def member(torchrun: psutil.Process, rank: int) -> psutil.Process | None:
    for child in torchrun.children():
        if child.environ().get("RANK") == str(rank):
            return child
    return None


def trained(kafka: KafkaSettings, count: int) -> Callable[[], ModelAnnouncement | None]:
    def found() -> ModelAnnouncement | None:
        announcement = newest_announcement(kafka).announcement
        return announcement if announcement is not None and announcement.examples_trained >= count else None

    return found


def refuse(error: Exception) -> None:
    raise error


def test_a_killed_process_leads_to_a_restart_of_all_from_the_last_cut(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    examples = clicks(400, partitions=2)
    send(kafka, examples[:200])

    with crew(kafka, tmp_path) as torchrun:
        before = wait_until(trained(kafka, 200))
        killed = member(torchrun, 1)
        assert killed is not None
        killed.kill()
        send(kafka, examples[150:])
        after = wait_until(trained(kafka, 400))
        successor = member(torchrun, 1)

    assert successor is not None
    assert successor.pid != killed.pid
    assert after.lineage == before.lineage
    assert after.examples_trained == 400
    found = newest_checkpoint(tmp_path / after.lineage, on_broken=refuse)
    assert found is not None
    assert found.manifest.examples_trained == 400
    per_partition = [sum(one.id.partition == number for one in examples) for number in (0, 1)]
    cut = read_cut(found.path)
    assert {number: mark[0] + 1 for number, mark in cut.marks["clicks"].items()} == dict(enumerate(per_partition))
