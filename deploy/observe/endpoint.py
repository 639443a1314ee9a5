"""The Prometheus endpoint of a process, and the file that tells others where it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import prometheus_client
import structlog

from deploy.settings import Settings


class RunningProcess(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `<state.directory>/processes/<name>.json` while a process runs."""

    name: str
    pid: int
    metrics_port: int
    started_at_ms: int


@contextmanager
def metrics_endpoint(settings: Settings, *, name: str) -> Iterator[RunningProcess]:
    """Serves /metrics from a background thread and says where; the file goes when the process ends cleanly.

    Raises:
        ValueError: the port of `observe.metrics_port` cannot be had.
    """
    observe = settings.observe
    try:
        server, thread = prometheus_client.start_http_server(observe.metrics_port, observe.metrics_host)
    except OSError as error:
        address = f"{observe.metrics_host}:{observe.metrics_port}"
        raise ValueError(f"metrics cannot be served on {address} ({error}); set observe.metrics_port = 0") from error
    running = RunningProcess(
        name=name, pid=os.getpid(), metrics_port=server.server_port, started_at_ms=time.time_ns() // 1_000_000
    )
    file = process_file(settings.state.directory, name)
    write_atomically(file, msgspec.json.encode(running))
    structlog.get_logger().info("metrics served", host=observe.metrics_host, port=running.metrics_port)
    try:
        yield running
    finally:
        file.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()
        thread.join()


def process_file(state_directory: Path, name: str) -> Path:
    """Where the process of that name says that it runs."""
    return state_directory / "processes" / f"{name}.json"


def read_process(state_directory: Path, name: str) -> RunningProcess | None:
    """The last start of that process that was not ended cleanly; a killed one leaves its file, so look at the pid."""
    try:
        return msgspec.json.decode(process_file(state_directory, name).read_bytes(), type=RunningProcess)
    except FileNotFoundError:
        return None


def write_atomically(file: Path, content: bytes) -> None:
    """A reader sees the old content or the new, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(file)
