"""The scheduler process: asks for the full retrain by the clock, and runs what is asked for.

A retrain runs in an operating-system process of its own, one at a time: its memory goes with it, a crash of it leaves
the scheduler standing, and it ends with the scheduler.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence

import structlog
from sqlalchemy import Engine

from deploy.registry.registry import (
    Outcome,
    fail_interrupted_retrains,
    finish_retrain,
    has_open_retrain,
    now_ms,
    opened_registry,
    request_retrain,
    take_requested_retrain,
)
from deploy.settings import Settings
from trainer.schedule import build_scheduler, schedule_retrain

POLL_SECONDS = 0.5
CHILD_POLL_SECONDS = 0.1
STOP_SECONDS = 3.0
CRON_JOB = "deploy.registry.scheduler:request_by_clock"

Command = Callable[[int], Sequence[str]]
"""The command line that performs the retrain of an id."""


def run_scheduler(settings: Settings, stop: threading.Event, *, command: Command) -> None:
    """Until `stop` is set.

    Raises:
        ValueError: retrain.cron is no cron expression, or the registry cannot be used.
    """
    with opened_registry(settings.registry_url) as engine, _clock(settings, engine):
        interrupted = fail_interrupted_retrains(engine, at_ms=now_ms())
        structlog.get_logger().info("scheduler started", cron=settings.retrain.cron, interrupted_retrains=interrupted)
        while not stop.wait(POLL_SECONDS):
            retrain = take_requested_retrain(engine, at_ms=now_ms())
            if retrain is not None:
                perform_in_child(engine, retrain.id, command(retrain.id), stop)


def request_by_clock(url: str) -> None:
    """The job of the cron setting: asks for a retrain unless one waits or runs. Called by APScheduler."""
    with opened_registry(url) as engine:
        if not has_open_retrain(engine):
            request_retrain(engine, at_ms=now_ms())


def perform_in_child(engine: Engine, retrain_id: int, command: Sequence[str], stop: threading.Event) -> None:
    """Runs a claimed retrain to its end; one whose process ends without a verdict, or is stopped, has failed."""
    log = structlog.get_logger().bind(retrain=retrain_id)
    log.info("retrain started")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        while child.poll() is None and not stop.wait(CHILD_POLL_SECONDS):
            pass
        stopped = child.returncode is None
        if stopped:
            _end(child)
    reason = "the scheduler was stopped; ask again" if stopped else f"its process ended with status {child.returncode}"
    finish_retrain(engine, retrain_id, Outcome(status="failed", reason=reason), at_ms=now_ms())
    log.info("retrain ended", status=child.returncode)


@contextlib.contextmanager
def _clock(settings: Settings, engine: Engine) -> Iterator[None]:
    scheduler = build_scheduler(engine)
    schedule_retrain(scheduler, settings.retrain, job=CRON_JOB, url=settings.registry_url)
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
