"""A real single-node Apache Kafka for people without one: started, found again, stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from deploy.local.kafka_cache import one_at_a_time
from deploy.local.kafka_classes import forget_archive, with_archive
from deploy.local.kafka_fetch import Report
from deploy.local.kafka_jvm import Jvm, find_jvm
from deploy.local.kafka_process import BrokerEndedError, BrokerFolder, launch, wait_for_answer

STOP_SECONDS = 8.0
# Java ends with the second number when it is sent SIGTERM.
_TOLD_TO_END = (-signal.SIGKILL, 128 + signal.SIGTERM)


class KafkaStatus(NamedTuple):
    """What runs in a folder."""

    pid: int | None
    """None where nothing runs."""
    bootstrap_servers: str | None
    log: Path


class LocalKafka:
    """The Kafka of one folder: its data, settings, log and process id; any process can find and stop it there.

    It outlives whoever started it, and Ctrl-C in a terminal does not reach it: its supervisor stops it last.
    `port` None takes the folder's earlier port, else 9092, else a free one; 0 never takes 9092.
    """

    def __init__(self, directory: Path, port: int | None = None, *, report: Report = lambda _: None) -> None:
        self._folder = BrokerFolder(directory)
        self._port = port
        self._report = report
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs, whoever started it."""
        process = self._process()
        return process.pid if process else None

    @property
    def is_running(self) -> bool:
        """Whether its process lives; it may not answer yet."""
        return self._process() is not None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it; the same after every restart unless another program has taken the port."""
        return self._folder.bootstrap_servers

    @property
    def log(self) -> Path:
        """What the broker has to say."""
        return self._folder.log

    def status(self) -> KafkaStatus:
        """What runs in this folder."""
        pid = self.pid
        return KafkaStatus(pid, self.bootstrap_servers if pid else None, self.log)

    def start(self) -> str:
        """Starts it unless it runs, waits until it answers, and gives its `bootstrap_servers`.

        Raises:
            ValueError: there is no Kafka or Java to be had, or it ended before it answered.
        """
        if self.is_running:
            wait_for_answer(self._folder, lambda: self.is_running)
        else:
            jvm = find_jvm(self._report)
            # Two that start at once would find the same port free, and the clients of one talk to the other's broker.
            with one_at_a_time("starting-kafka"):
                self._start_with_archive(jvm)
        return self.bootstrap_servers

    def stop(self) -> None:
        """Lets it close its files, and kills it if that takes too long; acknowledged messages are safe either way."""
        process = self._process()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
        self._bury(process)

    def kill(self) -> None:
        """Ends it by kill -9, as a power cut would."""
        process = self._process()
        if process is not None:
            process.kill()
            self._bury(process)

    def _process(self) -> psutil.Process | None:
        if self._child is not None and self._child.poll() is None:
            return psutil.Process(self._child.pid)
        return self._recorded()

    def _recorded(self) -> psutil.Process | None:
        """The process of the pid file, if it is this folder's Kafka and not another that was given the same number."""
        try:
            process = psutil.Process(int(self._folder.pid_file.read_text()))
            ours = str(self._folder.properties) in process.cmdline()
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if ours else None

    def _bury(self, process: psutil.Process) -> None:
        if self._child is not None:
            self._child.wait()
        process.wait()
        self._folder.pid_file.unlink(missing_ok=True)

    def _start_with_archive(self, plain: Jvm) -> None:
        """Java verifies an archive only in part: where the broker ends with it and not without, it is to blame."""
        jvm = with_archive(plain, self._report)
        try:
            self._start(jvm)
        except BrokerEndedError:
            if jvm == plain or self._was_told_to_end():
                raise
            self._start(plain)
            forget_archive(plain)

    def _was_told_to_end(self) -> bool:
        assert self._child is not None, "it was started here"
        return self._child.returncode in _TOLD_TO_END

    def _start(self, jvm: Jvm) -> None:
        """What does not answer, or is interrupted before it does, is not left running."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.kill)
            self._child = launch(jvm, self._folder, port=self._port)
            wait_for_answer(self._folder, lambda: self.is_running)
            undo.pop_all()
