"""The scheduler: retrains by the clock and on request, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine

from deploy.registry.pruning import prune_past_lineages
from deploy.registry.registry import (
    now_ms,
    opened_registry,
    record_version,
    request_retrain,
    retrain_by_id,
    take_requested_retrain,
    versions,
)
from deploy.registry.scheduler import request_by_clock, run_scheduler
from deploy.registry.tables import VersionStatus
from deploy.settings import Settings, StateSettings
from model.checkpoint import WrittenCheckpoint
from stream.events import ModelAnnouncement
from trainer.settings import RetrainSettings

WaitUntil = Callable[[Callable[[], Any]], Any]

VERDICT = """
import sys
from deploy.registry.registry import Outcome, finish_retrain, open_registry
finish_retrain(open_registry(sys.argv[1]), int(sys.argv[2]), Outcome(status="promoted", reason="better"), at_ms=5)
"""
CRASH = "import sys; sys.exit(7)"
FOR_EVER = "import pathlib, os, sys, time; pathlib.Path(sys.argv[3]).write_text(str(os.getpid())); time.sleep(3600)"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=StateSettings(directory=tmp_path))


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    with opened_registry(settings.registry_url) as engine:
        yield engine


@contextlib.contextmanager
def scheduler(settings: Settings, source: str, *arguments: str) -> Iterator[None]:
    """A scheduler whose retrains are this program."""

    def command(retrain_id: int) -> Sequence[str]:
        return [sys.executable, "-c", source, settings.registry_url, str(retrain_id), *arguments]

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_scheduler, settings, stop, command=command)
        try:
            yield
        finally:
            stop.set()
            running.result(timeout=30)


def test_a_requested_retrain_runs_and_keeps_the_verdict_of_its_process(
    settings: Settings, engine: Engine, wait_until: WaitUntil
) -> None:
    retrain_id = request_retrain(engine, at_ms=now_ms())
    with scheduler(settings, VERDICT):
        wait_until(lambda: retrain_by_id(engine, retrain_id).status == "promoted")

    assert retrain_by_id(engine, retrain_id).reason == "better"


def test_a_retrain_whose_process_dies_has_failed_and_the_next_one_runs(
    settings: Settings, engine: Engine, wait_until: WaitUntil
) -> None:
    asked = [request_retrain(engine, at_ms=now_ms()) for _ in range(2)]
    with scheduler(settings, CRASH):
        wait_until(lambda: [retrain_by_id(engine, one).status for one in asked] == ["failed", "failed"])

    assert retrain_by_id(engine, asked[0]).reason == "its process ended with status 7"


def test_a_retrain_ends_with_its_scheduler(
    settings: Settings, engine: Engine, wait_until: WaitUntil, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    retrain_id = request_retrain(engine, at_ms=now_ms())
    with scheduler(settings, FOR_EVER, str(pid_file)):
        wait_until(lambda: pid_file.exists() and pid_file.read_text())

    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert retrain_by_id(engine, retrain_id).reason == "the scheduler was stopped; ask again"


def test_a_scheduler_that_starts_closes_what_its_predecessor_left(
    settings: Settings, engine: Engine, wait_until: WaitUntil
) -> None:
    retrain_id = request_retrain(engine, at_ms=now_ms())
    take_requested_retrain(engine, at_ms=now_ms())
    with scheduler(settings, CRASH):
        wait_until(lambda: retrain_by_id(engine, retrain_id).status == "failed")


def test_the_clock_asks_for_one_retrain_at_a_time(settings: Settings, engine: Engine) -> None:
    request_by_clock(settings.registry_url)
    request_by_clock(settings.registry_url)

    assert take_requested_retrain(engine, at_ms=now_ms()) is not None
    assert take_requested_retrain(engine, at_ms=now_ms()) is None


def test_a_wrong_cron_ends_the_scheduler_with_the_name_of_the_setting(settings: Settings) -> None:
    wrong = settings.model_copy(update={"retrain": RetrainSettings(cron="every night")})

    with pytest.raises(ValueError, match=r"retrain\.cron"), scheduler(wrong, CRASH):
        os.sched_yield()


def test_of_a_past_lineage_the_last_version_and_promoted_ones_stay(
    engine: Engine, write_model: Callable[..., WrittenCheckpoint], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    for lineage, version in (("past", 1), ("past", 2), ("past", 3), ("past", 4), ("live", 1), ("live", 2)):
        checkpoint = write_model(lineage=lineage, version=version, items=["item"])
        status: VersionStatus = "promoted" if (lineage, version) == ("past", 2) else "published"
        record_version(engine, announced(checkpoint), status=status)

    too_early = prune_past_lineages(engine, checkpoints, at_ms=now_ms())
    gone = prune_past_lineages(engine, checkpoints, at_ms=now_ms() + 2 * 3_600_000)

    assert too_early == []
    assert gone == [("past", 1), ("past", 3)]
    left = {path.relative_to(checkpoints).as_posix() for path in checkpoints.glob("*/0*")}
    assert left == {"past/00000002", "past/00000004", "live/00000001", "live/00000002"}
    assert {(row.lineage, row.version) for row in versions(engine) if row.pruned_at_ms} == set(gone)


def announced(checkpoint: WrittenCheckpoint) -> ModelAnnouncement:
    return ModelAnnouncement(
        model="sasrec",
        lineage=checkpoint.manifest.lineage,
        version=checkpoint.manifest.version,
        path=str(checkpoint.path),
        manifest_sha256=checkpoint.manifest_sha256,
        created_at_ms=checkpoint.manifest.created_at_ms,
        examples_trained=0,
    )
