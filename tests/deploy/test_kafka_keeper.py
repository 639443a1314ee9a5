from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.child import Child
from deploy.local.kafka import LocalKafka
from deploy.local.kafka_keeper import address_file

Wait = Callable[[Callable[[], Any]], Any]

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("broker")]


def keeper(directory: Path) -> Child:
    command = (sys.executable, "-m", "deploy.local.kafka_keeper", str(directory / "kafka"))
    return Child(command, log=directory / "keeper.log")


def broker_of(directory: Path) -> LocalKafka:
    return LocalKafka(directory / "kafka")


def test_a_broker_that_is_killed_ends_its_keeper_which_says_so_and_the_next_keeps_the_port(
    tmp_path: Path, wait_until: Wait
) -> None:
    first = keeper(tmp_path)
    address = address_file(tmp_path / "kafka")
    wait_until(address.exists)
    before = address.read_text()
    pid = broker_of(tmp_path).pid
    assert pid is not None

    psutil.Process(pid).kill()
    reason = wait_until(first.ended)
    said_during = address.exists()
    second = keeper(tmp_path)
    wait_until(address.exists)

    after = address.read_text()
    second.terminate()
    second.wait(60.0)
    assert reason.startswith("exit status 1: the broker has ended")
    assert not said_during
    assert after == before


def test_the_broker_ends_with_its_keeper(tmp_path: Path, wait_until: Wait) -> None:
    kept = keeper(tmp_path)
    wait_until(address_file(tmp_path / "kafka").exists)
    pid = broker_of(tmp_path).pid
    assert pid is not None

    kept.terminate()

    assert kept.wait(60.0) == 0
    assert not psutil.pid_exists(pid)
