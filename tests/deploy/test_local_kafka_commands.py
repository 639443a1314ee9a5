from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.cli.kafka import NOT_RUNNING
from deploy.local.kafka import LocalKafka
from deploy.local.kafka_settings import HOST, free_port
from stream.settings import KafkaSettings

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """`sasrec-stream` with a state folder of the test's own; the Kafka there ends with the test."""

    def sasrec_stream(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from deploy.cli.main import main; main()", "--state-directory", str(tmp_path)]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    yield sasrec_stream
    LocalKafka(tmp_path / "kafka").kill()


@pytest.mark.broker
@pytest.mark.usefixtures("broker")
def test_the_commands_start_it_say_where_it_runs_and_stop_it(run: Run) -> None:
    port = free_port()

    before = run("kafka", "status")
    started = run("kafka", "start", "--port", str(port))
    found = run("kafka", "status")
    stopped = run("kafka", "stop")
    after = run("kafka", "status")

    assert before.returncode == after.returncode == NOT_RUNNING
    assert f"Kafka answers at {HOST}:{port}" in started.stdout
    assert f"Kafka runs at {HOST}:{port}" in found.stdout
    assert found.returncode == 0
    assert stopped.stdout == "Kafka stopped\n"


def test_stopping_what_does_not_run_says_so(run: Run) -> None:
    stopped = run("kafka", "stop")

    assert stopped.returncode == 0
    assert "no Kafka runs in" in stopped.stdout


@pytest.mark.broker
def test_topics_are_created_once_and_then_as_they_must_be(
    run: Run, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["--bootstrap-servers", kafka.bootstrap_servers]

    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", f"{kafka.topic_prefix}other.")

    created = run(*at, "topics", "create")
    again = run(*at, "topics", "create")
    checked = run(*at, "topics", "check")

    assert f"created {kafka.topic_prefix}other.clicks\n" in created.stdout
    assert again.stdout == "0 created, all as they must be\n"
    assert checked.returncode == 0


@pytest.mark.broker
def test_missing_topics_end_the_check_with_the_command_that_makes_them(
    run: Run, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", f"{kafka.topic_prefix}other.")

    checked = run("--bootstrap-servers", kafka.bootstrap_servers, "topics", "check")

    assert checked.returncode == 2
    assert "sasrec-stream topics create" in checked.stderr


@pytest.mark.slow
def test_where_no_kafka_answers_the_error_names_both_ways_out(run: Run) -> None:
    refused = run("--bootstrap-servers", f"{HOST}:{free_port()}", "topics", "check")

    assert refused.returncode == 2
    assert "sasrec-stream kafka start" in refused.stderr
    assert "--bootstrap-servers" in refused.stderr
