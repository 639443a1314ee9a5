"""Two processes, started by torchrun, are one trainer; when one is killed, both begin again from the last cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.checkpoint import WrittenCheckpoint, newest_checkpoint
from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, send
from trainer.state import read_cut

pytestmark = pytest.mark.broker

Wait = Callable[[Callable[[], Any]], Any]


@contextmanager
def crew(kafka: KafkaSettings, checkpoints: Path) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    trainer = ["-m", "tests.trainer.doomed_trainer", kafka.bootstrap_servers, kafka.topic_prefix, str(checkpoints)]
    with subprocess.Popen([*torchrun, *trainer]) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def member(torchrun: subprocess.Popen[bytes], rank: int) -> psutil.Process:
    children = psutil.Process(torchrun.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def trained(checkpoints: Path, count: int) -> Callable[[], WrittenCheckpoint | None]:
    """A whole checkpoint that has learnt so many."""

    def found() -> WrittenCheckpoint | None:
        for lineage in checkpoints.glob("2*"):
            newest = newest_checkpoint(lineage, on_broken=lambda _: None)
            if newest is not None and newest.manifest.examples_trained >= count:
                return newest
        return None

    return found


def test_a_killed_process_leads_to_a_restart_of_all_from_the_last_cut(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    """And one that is asked to stop stops all, in good order."""
    examples = clicks(400, partitions=2)
    send(kafka, examples[:200])

    with crew(kafka, tmp_path) as torchrun:
        before = wait_until(trained(tmp_path, 200))
        killed = member(torchrun, 1)
        killed.kill()
        send(kafka, examples[150:])
        after = wait_until(trained(tmp_path, 400))
        successor = member(torchrun, 1)
        successor.terminate()
        wait_until(lambda: torchrun.poll() is not None)

    assert torchrun.returncode == 0
    assert successor.pid != killed.pid
    assert after.manifest.lineage == before.manifest.lineage
    assert after.manifest.examples_trained == 400
    per_partition = [sum(one.id.partition == number for one in examples) for number in (0, 1)]
    cut = read_cut(after.path)
    assert {number: mark[0] + 1 for number, mark in cut.marks["clicks"].items()} == dict(enumerate(per_partition))
