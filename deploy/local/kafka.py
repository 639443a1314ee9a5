"""A real single-node Apache Kafka for people without one: started, found again, stopped."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from deploy.local.kafka_fetch import Report
from deploy.local.kafka_jvm import Jvm, find_jvm
from deploy.local.kafka_settings import HOST, choose_port, free_port, port_in, server_properties
from deploy.local.kafka_template import copy_formatted

START_SECONDS = 60.0
STOP_SECONDS = 8.0
_POLL_SECONDS = 0.02
_LAST_LINES = 15


class KafkaStatus(NamedTuple):
    """What runs in a folder."""

    pid: int | None
    """None where nothing runs."""
    bootstrap_servers: str | None
    log: Path


class LocalKafka:
    """The Kafka of one folder: its data, settings, log and process id; any process can find and stop it there.

    It outlives whoever started it, and it is in a session of its own, so Ctrl-C in a terminal leaves it to its
    supervisor. `port` None takes the folder's earlier port, else 9092, else a free one; 0 never takes 9092.
    """

    def __init__(self, directory: Path, port: int | None = None, *, report: Report = lambda _: None) -> None:
        self.directory = directory
        self.log = directory / "kafka.log"
        self._port = port
        self._report = report
        self._properties = directory / "server.properties"
        self._pid_file = directory / "kafka.pid"
        self._data = directory / "data"
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
        return f"{HOST}:{port_in(self._properties)}"

    def status(self) -> KafkaStatus:
        """What runs in this folder."""
        pid = self.pid
        return KafkaStatus(pid, self.bootstrap_servers if pid else None, self.log)

    def start(self) -> str:
        """Starts it unless it runs, waits until it answers, and gives its `bootstrap_servers`.

        Raises:
            ValueError: there is no Kafka or Java to be had, or it ended before it answered.
        """
        if not self.is_running:
            self._launch(find_jvm(self._report))
        self._wait_for_answer()
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
        self._reap(process)

    def kill(self) -> None:
        """Ends it by kill -9, as a power cut would."""
        process = self._process()
        if process is not None:
            process.kill()
            self._reap(process)

    def _process(self) -> psutil.Process | None:
        """The process of the pid file, if it is this folder's Kafka and not another that was given the same number."""
        if self._child is not None:
            self._child.poll()
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            ours = str(self._properties.absolute()) in process.cmdline()
        except (FileNotFoundError, psutil.NoSuchProcess, psutil.ZombieProcess):
            return None
        return process if ours else None

    def _reap(self, process: psutil.Process) -> None:
        if self._child is not None:
            self._child.wait()
        process.wait()
        self._pid_file.unlink(missing_ok=True)

    def _launch(self, jvm: Jvm) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        copy_formatted(jvm, self._data)
        port = choose_port(self._port, port_in(self._properties))
        self._properties.write_text(server_properties(self._data, port=port, controller_port=free_port()))
        self._keep_last_log()
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                jvm.server(self._properties.absolute()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._child.pid))

    def _keep_last_log(self) -> None:
        """One earlier log stays: what a broker that died had to say."""
        with contextlib.suppress(FileNotFoundError):
            self.log.replace(self.log.with_suffix(".log.1"))

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.is_running:
                raise ValueError(f"the local Kafka ended before it answered; {self._last_words()}")
            if time.monotonic() > deadline:
                raise ValueError(f"the local Kafka does not answer after {START_SECONDS:.0f} s; {self._last_words()}")
            time.sleep(_POLL_SECONDS)  # reason: there is nothing to wait on but the port

    def _answers(self) -> bool:
        """Whether it takes connections and knows of a broker, itself, that can hold partitions."""
        port = port_in(self._properties)
        assert port is not None, "it is written before the broker starts"
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return False
        try:
            with KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=1_000) as admin:
                return any(not broker["is_fenced"] for broker in admin.describe_cluster()["brokers"])
        except KafkaError:
            return False

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"the end of its log, {self.log.absolute()}, says:", *lines])
