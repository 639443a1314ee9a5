"""What every process tells the outside: logs and metrics."""

from __future__ import annotations

import json
import logging
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from deploy.observe.endpoint import metrics_endpoint, process_file, read_process
from deploy.observe.logs import configure_logs
from deploy.settings import ObserveSettings, Settings, StateSettings


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    structlog.reset_defaults()


def test_a_line_is_json_with_the_process_where_no_terminal_reads(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(process="scoring", level="INFO")

    structlog.get_logger().info("model swapped", version=3)
    logging.getLogger("somebody.else").warning("%s things", 2)

    ours, theirs = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours["event"], ours["version"], ours["process"], ours["level"]) == ("model swapped", 3, "scoring", "info")
    assert (theirs["event"], theirs["process"]) == ("2 things", "scoring")


def test_a_traceback_stays_on_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(process="scoring", level="INFO")

    try:
        int("broken")
    except ValueError:
        structlog.get_logger().exception("ended")

    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_below_the_level_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(process="scoring", level="ERROR")

    structlog.get_logger().info("quiet")

    assert capsys.readouterr().err == ""


def test_an_unknown_level_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"observe\.log_level 'LOUD'"):
        configure_logs(process="scoring", level="LOUD")


def test_the_endpoint_serves_metrics_on_the_port_its_file_names_and_the_file_goes(tmp_path: Path) -> None:
    settings = Settings(state=StateSettings(directory=tmp_path))

    with metrics_endpoint(settings, name="scoring") as running:
        assert read_process(tmp_path, "scoring") == running
        assert running.pid == os.getpid()
        with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics") as answer:
            assert b"python_info" in answer.read()

    assert not process_file(tmp_path, "scoring").exists()
    assert read_process(tmp_path, "scoring") is None


def test_a_taken_port_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        observe = ObserveSettings(metrics_port=taken.getsockname()[1])
        settings = Settings(state=StateSettings(directory=tmp_path), observe=observe)

        with pytest.raises(ValueError, match=r"observe\.metrics_port = 0"), metrics_endpoint(settings, name="scoring"):
            pytest.fail("the port is taken")
