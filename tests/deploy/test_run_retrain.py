"""`sasrec-stream retrain`: asks, follows, and says how it ended."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from deploy.cli import retrain as command
from deploy.cli.main import app
from deploy.registry.registry import (
    Outcome,
    finish_retrain,
    now_ms,
    opened_registry,
    request_retrain,
    retrain_by_id,
    take_requested_retrain,
    versions,
)
from deploy.registry.scheduler import run_scheduler
from deploy.scoring.follow import follow
from deploy.settings import Settings, StateSettings
from stream.clients import producer
from stream.events import ModelAnnouncement
from stream.sequences import UserState, encode_state, times_of
from stream.settings import KafkaSettings
from stream.topics import MODELS, SEQUENCES

BETTER = Outcome(status="promoted", reason="better", judged_events=300, ndcg_champion=0.1, ndcg_challenger=0.25)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=StateSettings(directory=tmp_path))


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    with opened_registry(settings.registry_url) as engine:
        yield engine


def retrain(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--state-directory", str(settings.state.directory), "retrain", *arguments])


def test_without_waiting_it_only_asks(settings: Settings, engine: Engine) -> None:
    result = retrain(settings, "--no-wait")

    assert (result.exit_code, result.output) == (0, "retrain 1 requested\n")
    assert retrain_by_id(engine, 1).status == "requested"


def test_without_a_scheduler_it_says_how_to_start_one_and_takes_the_request_back(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TAKEN_WITHIN_SECONDS", 0.0)

    result = retrain(settings)

    assert isinstance(result.exception, ValueError)
    assert "sasrec-stream run scheduler" in str(result.exception)
    assert retrain_by_id(engine, 1).status == "failed"


@pytest.mark.parametrize(("status", "exit_code"), [("promoted", 0), ("failed", 1), ("rejected", 3), ("undecided", 4)])
def test_it_follows_a_retrain_to_its_verdict(
    settings: Settings, engine: Engine, wait_until: Callable[[Callable[[], Any]], Any], status: str, exit_code: int
) -> None:
    outcome = msgspec.structs.replace(BETTER, status=status)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(retrain, settings)
        taken = wait_until(lambda: take_requested_retrain(engine, at_ms=now_ms()))
        finish_retrain(engine, taken.id, outcome, at_ms=now_ms())
        result = following.result(timeout=60)

    assert result.exit_code == exit_code
    assert result.output.splitlines()[-1] == (
        f"retrain 1: {status} on 300 events, NDCG@10 0.2500 against 0.1000 of the live model (better)"
    )


def test_one_that_waits_behind_another_is_patient(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], Any]], Any]
) -> None:
    monkeypatch.setattr(command, "TAKEN_WITHIN_SECONDS", 0.0)
    first = request_retrain(engine, at_ms=now_ms())
    take_requested_retrain(engine, at_ms=now_ms())
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(retrain, settings)
        second = wait_until(lambda: take_requested_retrain(engine, at_ms=now_ms()))
        for one in (first, second.id):
            finish_retrain(engine, one, BETTER, at_ms=now_ms())

        assert following.result(timeout=60).exit_code == 0


@pytest.mark.broker
def test_the_scheduler_performs_it_and_the_first_model_goes_live(
    kafka: KafkaSettings, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASREC__KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("SASREC__MODEL__UNITS", "8")
    monkeypatch.setenv("SASREC__RETRAIN__EPOCHS", "1")
    with producer(kafka) as sender:
        for number in range(20):
            items = tuple(f"item-{number + step}" for step in range(5))
            state = UserState(items=items, times=times_of(range(0, 5_000, 1_000)), clicks_applied=5)
            sender.send(kafka.topic(SEQUENCES), encode_state(state), key=f"user-{number}".encode())

    def perform(retrain_id: int) -> Sequence[str]:
        options = ["--state-directory", str(settings.state.directory)]
        return [sys.executable, "-m", "deploy.cli", *options, "retrain", "--perform", str(retrain_id)]

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        scheduler = pool.submit(run_scheduler, settings, stop, command=perform)
        result = retrain(settings)
        stop.set()
        scheduler.result(timeout=30)

    assert result.exit_code == 0, result.output
    assert "no model is live yet" in result.output
    (version,) = versions(engine)
    (announced,) = next(follow(kafka, MODELS, threading.Event())).values()
    announcement = msgspec.json.decode(announced.value, type=ModelAnnouncement)
    assert (version.lineage, version.version, version.status) == (announcement.lineage, 1, "promoted")
    assert retrain_by_id(engine, 1).challenger_lineage == version.lineage
