from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.main import COMMANDS
from deploy.local.kafka import LocalKafka
from stream.settings import KafkaSettings

HEAVY = ("torch", "faust", "pyarrow", "sqlalchemy", "apscheduler", "pytest")


def sasrec_stream(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from deploy.cli.main import main; main()", *words],
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_command(tmp_path: Path) -> None:
    shown = sasrec_stream("--help", cwd=tmp_path)

    assert shown.returncode == 0
    for command in COMMANDS:
        assert command in shown.stdout


def test_a_setting_that_does_not_exist_is_one_line_and_exit_status_two(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[trainer]\nlos = 'bce'\n")

    refused = sasrec_stream("--settings", "own.toml", "settings", cwd=tmp_path)

    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "sasrec-stream: settings: trainer.los: no such setting; did you mean trainer.loss?"
    ]


def test_options_of_the_root_reach_the_settings(tmp_path: Path) -> None:
    shown = sasrec_stream("--bootstrap-servers", "a:1", "--state-directory", "there", "settings", cwd=tmp_path)

    assert 'bootstrap_servers = "a:1"\n' in shown.stdout
    assert 'directory = "there"\n' in shown.stdout


@pytest.mark.broker
def test_commands_find_the_local_kafka_of_the_state_folder(
    broker: LocalKafka, kafka: KafkaSettings, tmp_path: Path
) -> None:
    state = broker.log.parents[1]
    (tmp_path / "own.toml").write_text(
        f"[kafka]\ntopic_prefix = {kafka.topic_prefix!r}\npartitions = {kafka.partitions}\n"
    )

    checked = sasrec_stream("--settings", "own.toml", "--state-directory", str(state), "topics", "check", cwd=tmp_path)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("module", HEAVY)
def test_the_command_line_starts_without(module: str, tmp_path: Path) -> None:
    code = f"import sys, deploy.cli.main; sys.exit({module!r} in sys.modules)"

    started = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])}, check=False
    )

    assert started.returncode == 0
