"""`sasrec-stream run NAME`: one process of the system, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import enum
import os
import socket
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated

import psutil
import structlog
import typer

from deploy.cli.signals import end_at_once_on_signals, stop_on_signals
from deploy.observe.endpoint import metrics_endpoint, read_process
from deploy.observe.logs import configure_logs
from deploy.settings import Settings
from stream.admin import require_topics

CRASHED = 1
PID_SLACK_MS = 1_000


class Kind(enum.StrEnum):
    """What a process does."""

    STREAM = "stream"
    MAPPER = "mapper"
    TRAINER = "trainer"
    SCORING = "scoring"
    SCHEDULER = "scheduler"
    HTTP = "http"
    AUDIENCE = "audience"


def run(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="Which process.")],
    name: Annotated[
        str | None, typer.Option(help="Tells this process from others of its kind in the same state folder.")
    ] = None,
) -> None:
    """Run one process in the foreground; SIGTERM or Ctrl-C ends it cleanly.

    Several stream and scoring workers share the users; each needs a --name of its own. There is one trainer and one
    scheduler. torchrun makes one trainer of several processes.
    """
    settings: Settings = context.obj
    named = (name or kind.value) + _rank()
    end_at_once_on_signals()
    configure_logs(process=named, level=settings.observe.log_level)
    refuse_second(settings, named)
    with metrics_endpoint(settings, name=named):
        try:
            PROCESSES[kind](settings, named, _global_options(context))
        except ValueError:
            raise  # for people: one line and status 2
        except Exception:  # noqa: BLE001 - a process begins here, and whoever restarts it wants to know why it ended
            structlog.get_logger().exception("the process failed")
            raise typer.Exit(CRASHED) from None


def _rank() -> str:
    """Behind the name, where torchrun has started several processes of one trainer."""
    rank = int(os.environ.get("RANK", "0"))
    return f"-rank-{rank}" if rank else ""


def refuse_second(settings: Settings, name: str) -> None:
    """Two processes of one name would fight for the same partitions and files.

    Raises:
        ValueError: one runs already.
    """
    other = read_process(settings.state.directory, name)
    if other is None or other.pid == os.getpid() or not psutil.pid_exists(other.pid):
        return
    began_at_ms = psutil.Process(other.pid).create_time() * 1_000
    if began_at_ms <= other.started_at_ms + PID_SLACK_MS:  # else the pid has gone to another process since
        raise ValueError(
            f"{name} runs already in {settings.state.directory} (pid {other.pid}); stop it, or give this one a --name"
        )


def member_name(settings: Settings, name: str) -> str:
    """The name of a worker in its consumer group: its own, and the same after every restart."""
    folder = zlib.crc32(str(settings.state.directory.absolute()).encode())
    return f"{socket.gethostname()}-{folder:08x}-{name}"


def _global_options(context: typer.Context) -> list[str]:
    """The options before the command, for processes that this one starts."""
    assert context.parent is not None
    given = context.parent.params
    options = {
        "--settings": given["settings_path"],
        "--bootstrap-servers": given["bootstrap_servers"],
        "--state-directory": given["state_directory"],
    }
    return [text for option, value in options.items() if value is not None for text in (option, str(value))]


def _stream(settings: Settings, name: str, _options: Sequence[str]) -> None:
    """Handles its signals itself: an asyncio loop needs other handlers."""
    from stream.app import run_worker  # noqa: PLC0415 - no other process waits for Faust

    folder = settings.state.directory / "stream" / name
    run_worker(settings.kafka, settings.stream, folder, instance=member_name(settings, name))


def _mapper(settings: Settings, name: str, _options: Sequence[str]) -> None:
    from stream.mapping.worker import run_mapper  # noqa: PLC0415 - see above

    require_topics(settings.kafka)
    with stop_on_signals() as stop:
        run_mapper(settings.kafka, settings.mapping, stop, member=member_name(settings, name))


def _trainer(settings: Settings, _name: str, _options: Sequence[str]) -> None:
    """Its published versions go into the registry."""
    from deploy.registry.publishing import run_recorded_trainer  # noqa: PLC0415 - see above

    require_topics(settings.kafka)
    with stop_on_signals() as stop:
        run_recorded_trainer(settings, stop)


def _scoring(settings: Settings, name: str, _options: Sequence[str]) -> None:
    from deploy.scoring.worker import run_worker  # noqa: PLC0415 - see above

    require_topics(settings.kafka)
    with stop_on_signals() as stop:
        run_worker(settings, stop, member=member_name(settings, name))


def _scheduler(settings: Settings, _name: str, options: Sequence[str]) -> None:
    from deploy.registry.scheduler import run_scheduler  # noqa: PLC0415 - see above

    def command(retrain_id: int) -> Sequence[str]:
        return [sys.executable, "-m", "deploy.cli", "--tethered", *options, "retrain", "--perform", str(retrain_id)]

    with stop_on_signals() as stop:
        run_scheduler(settings, stop, command=command)


def _http(settings: Settings, _name: str, _options: Sequence[str]) -> None:
    try:
        from deploy.http.server import run_http  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        raise ValueError(f"{error.name} is not installed: pip install 'sasrec-stream[http]'") from error

    require_topics(settings.kafka)
    with stop_on_signals() as stop:
        run_http(settings, stop)


def _audience(settings: Settings, _name: str, _options: Sequence[str]) -> None:
    from deploy.local.audience_process import run_audience  # noqa: PLC0415 - see above

    require_topics(settings.kafka)
    with stop_on_signals() as stop:
        run_audience(settings, stop)


Process = Callable[[Settings, str, Sequence[str]], None]
PROCESSES: dict[Kind, Process] = {
    Kind.STREAM: _stream,
    Kind.MAPPER: _mapper,
    Kind.TRAINER: _trainer,
    Kind.SCORING: _scoring,
    Kind.SCHEDULER: _scheduler,
    Kind.HTTP: _http,
    Kind.AUDIENCE: _audience,
}
