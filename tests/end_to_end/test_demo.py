from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from deploy.local.kafka import LocalKafka
from deploy.observe.endpoint import RunningProcess
from deploy.settings import Settings, StateSettings

Wait = Callable[[Callable[[], Any]], Any]

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.usefixtures("broker")]


def settings_in(directory: Path) -> Settings:
    return Settings(state=StateSettings(directory=directory))


class Up(NamedTuple):
    """`sasrec-stream up`, as a person starts it."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        """All that it said, once it has ended."""
        self.process.wait()
        return self.output.read_text()


@contextmanager
def up(directory: Path, *options: str) -> Iterator[Up]:
    """Whatever the test does, it is gone afterwards."""
    command = (sys.executable, "-m", "deploy.cli", "--state-directory", str(directory), "up", *options)
    output = directory / "output.txt"
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield Up(process, output)
        finally:
            process.terminate()


def pids(directory: Path) -> dict[str, int]:
    """Every process that says it runs there, by name, the broker included."""
    files = sorted((directory / "processes").glob("*.json"))
    found = [msgspec.json.decode(file.read_bytes(), type=RunningProcess) for file in files]
    broker = LocalKafka(settings_in(directory).kafka_directory).pid
    return {one.name: one.pid for one in found} | ({"kafka": broker} if broker else {})


def everything_runs(directory: Path) -> dict[str, int] | None:
    found = pids(directory)
    return found if {"kafka", "stream", "trainer", "scoring", "scheduler"} <= set(found) else None


def alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def test_the_demo_learns_recommends_and_loses_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "--demo", "--seconds", "45") as demo:
        said = demo.said()

    summary = msgspec.json.decode(said.splitlines()[-1])
    assert demo.process.returncode == 0, said
    assert summary["good"], said
    assert summary["exit_reason"] == "time is up"
    assert summary["model_versions"] >= 2
    assert summary["lost"] == summary["doubled"] == summary["dead_lettered"] == 0
    assert summary["applied"] == summary["produced"]["clicks"] > 500
    assert summary["produced"]["impressions"] > 100
    assert summary["recommendations"] > 500
    assert summary["processes_dead"] == []
    assert summary["restarts"] == 0
    assert summary["hr10"]["sasrec"] > summary["hr10"]["popular"]
    assert not any(alive(pid) for pid in pids(tmp_path).values())


def test_ctrl_c_stops_everything_cleanly(tmp_path: Path, wait_until: Wait) -> None:
    with up(tmp_path) as machine:
        running = wait_until(lambda: everything_runs(tmp_path))

        machine.process.send_signal(signal.SIGINT)
        said = machine.said()

    assert machine.process.returncode == 0, said
    assert "killed" not in said
    assert "Traceback" not in said
    assert [name for name, pid in running.items() if alive(pid)] == []
    assert pids(tmp_path) == {}


def test_nothing_outlives_a_supervisor_that_was_killed(tmp_path: Path, wait_until: Wait) -> None:
    with up(tmp_path) as machine:
        running = wait_until(lambda: everything_runs(tmp_path))

        machine.process.kill()

        wait_until(lambda: not any(alive(pid) for pid in running.values()))


def test_a_kafka_that_ran_before_is_used_and_goes_on_running(tmp_path: Path, wait_until: Wait) -> None:
    kafka = LocalKafka(settings_in(tmp_path).kafka_directory, port=0)
    kafka.start()
    try:
        before = kafka.pid
        with up(tmp_path) as machine:
            wait_until(lambda: everything_runs(tmp_path))
            machine.process.send_signal(signal.SIGTERM)
            said = machine.said()

        assert machine.process.returncode == 0, said
        assert kafka.pid == before
    finally:
        kafka.stop()
