"""The whole system, as `sasrec-stream up` starts it, in a folder of its own: for benchmarks and end-to-end tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from kafka.errors import KafkaError
from rich.console import Console
from rich.progress import track

from deploy.cli.settings import settings_document
from deploy.local.kafka import LocalKafka
from deploy.local.watchdog import Progress
from deploy.observe.endpoint import read_process
from deploy.observe.offsets import Offsets
from deploy.observe.scrape import Sample, scrape
from deploy.replay.events import events
from deploy.replay.player import Pace, Played, play
from deploy.settings import Settings, load_settings
from stream.settings import KafkaSettings

BROKER = "broker"
GROUPS = ("stream", "trainer", "scoring")
PROCESSES = ("stream", "trainer", "scoring", "scheduler")
START_SECONDS = 120.0
STOP_SECONDS = 30.0
STALL_SECONDS = 300.0
_POLL_SECONDS = 0.5
_COMMAND = Path(sys.executable).with_name("sasrec-stream")
_LAST_LINES = 20


class System:
    """A running `sasrec-stream up`; nothing here reaches inside it but signals, its topics and its metrics."""

    def __init__(self, settings: Settings, process: subprocess.Popen[bytes]) -> None:
        self.settings = settings
        self._process = process
        self._broker = LocalKafka(settings.kafka_directory)
        self._killed: dict[str, int] = {}

    @property
    def kafka(self) -> KafkaSettings:
        """Where clients find its Kafka."""
        return self.settings.kafka.model_copy(update={"bootstrap_servers": self._broker.bootstrap_servers})

    @property
    def log(self) -> Path:
        """What `up` printed."""
        return log_of(self.settings.state.directory)

    def play(self, rows: pa.Table, *, pace: Pace) -> Played:
        """Plays a log (deploy/replay/formats.py) into it, with a progress bar on standard error."""
        shown = track(events(rows), total=rows.num_rows, description="replay", console=Console(stderr=True))
        return play(shown, kafka=self.kafka, pace=pace, stop=threading.Event())

    def kill(self, name: str) -> None:
        """As `kill -9` does, a process by its name or the broker; the supervisor starts it again by itself."""
        pid = self.pid(name)
        self._killed[name] = pid
        os.kill(pid, signal.SIGKILL)

    def restarted(self) -> dict[str, bool]:
        """Of all that was killed, whether another process stands in its place."""
        return {name: self.pid(name) != killed for name, killed in self._killed.items()}

    def pid(self, name: str) -> int:
        """The process of that name, as it said itself; a killed one leaves its number until the next starts."""
        if name == BROKER:
            return self._broker.pid or 0
        running = read_process(self.settings.state.directory, name)
        assert running is not None
        return running.pid

    def metrics(self, name: str) -> tuple[Sample, ...]:
        """What the process serves; nothing while it is away."""
        directory = self.settings.state.directory
        running = read_process(directory, name)
        if running is None:
            return ()
        return scrape(directory, name, host=self.settings.observe.metrics_host, pid=running.pid) or ()

    def progress(self) -> dict[str, Progress] | None:
        """What each consumer group has done and has to do, over all its topics; None while Kafka is away."""
        try:
            with contextlib.closing(Offsets(self.kafka)) as offsets:
                progress = offsets.progress()
        except KafkaError:
            return None
        return {kind: _total(partitions.values()) for kind, partitions in progress.items()}

    def wait_until_caught_up(self, groups: Collection[str] = GROUPS) -> None:
        """Returns when these groups have done everything, twice in a row: what one does makes work for another.

        Raises:
            TimeoutError: nothing moved for five minutes.
        """
        quiet, before, moved_at = 0, self.progress(), time.monotonic()
        while quiet < 2:
            time.sleep(_POLL_SECONDS)
            progress = self.progress()
            is_done = progress is not None and not any(progress[group].lag for group in groups)
            quiet = quiet + 1 if is_done and progress == before else 0
            if progress != before:
                before, moved_at = progress, time.monotonic()
            if time.monotonic() - moved_at > STALL_SECONDS:
                raise TimeoutError(f"no progress for {STALL_SECONDS:g} s with {progress} to do; see {self.log}")

    def wait_until_started(self) -> None:
        """Returns when every process answers.

        Raises:
            TimeoutError: one does not.
            ValueError: `up` has ended.
        """
        for name in PROCESSES:
            self._wait(lambda name=name: self._answers(name), what=f"{name} to start")  # type: ignore[misc]  # bound now

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        with self._process:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
            return self._process.wait(STOP_SECONDS)

    def _answers(self, name: str) -> bool:
        running = read_process(self.settings.state.directory, name)
        return running is not None and psutil.pid_exists(running.pid) and bool(self.metrics(name))

    def _wait(self, condition: Callable[[], bool], *, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self._process.poll() is not None:
                raise ValueError(f"`sasrec-stream up` has ended:\n{_tail(self.log)}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {START_SECONDS:g} s for {what}; see {self.log}")
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def running_system(directory: Path, **overrides: Mapping[str, Any]) -> Iterator[System]:
    """Starts everything with these settings (sections, as in `load_settings`) and stops it at the end.

    It ends with this process too, however that one ends: its standard input is a pipe that only this process holds.
    """
    settings = load_settings(None, **{"state": {"directory": directory}} | overrides)
    file = directory / "sasrec-stream.toml"
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(settings_document(settings), encoding="utf-8")
    _settle_port(settings)
    command = [str(_COMMAND), "--tethered", "--settings", str(file), "up"]
    with log_of(directory).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
    system = System(settings, process)
    try:
        system.wait_until_started()
        yield system
    finally:
        system.stop()


def _settle_port(settings: Settings) -> None:
    """Gives the folder's broker a port that it keeps; on the usual one it might meet another one of this machine."""
    broker = LocalKafka(settings.kafka_directory, port=0)
    broker.start()
    broker.stop()


def log_of(directory: Path) -> Path:
    """Where `up` prints when it runs in this folder."""
    return directory / "up.log"


def _total(parts: Iterable[Progress]) -> Progress:
    whole = list(parts)
    return Progress(sum(part.committed for part in whole), sum(part.end for part in whole))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
