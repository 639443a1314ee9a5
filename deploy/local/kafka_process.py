"""One run of the broker in one folder: prepared, launched, waited for."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from deploy.local.kafka_jvm import Jvm
from deploy.local.kafka_settings import HOST, choose_port, free_port, port_in, server_properties
from deploy.local.kafka_template import copy_formatted

START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_LAST_LINES = 15
# An ApiVersions request, version 0: its length, kind 18, version, number, and no client name.
_WHICH_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 0, -1)


class BrokerEndedError(ValueError):
    """The broker ended before it answered; the message ends with the last lines of its log."""


class BrokerFolder(NamedTuple):
    """Everything that a local Kafka keeps, all in one folder."""

    directory: Path

    @property
    def properties(self) -> Path:
        """Its settings, written anew at every start; absolute, for the command line shows by it whose broker it is."""
        return self.directory.absolute() / "server.properties"

    @property
    def data(self) -> Path:
        """The topics."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """What the last run had to say; the run before is beside it."""
        return self.directory / "kafka.log"

    @property
    def pid_file(self) -> Path:
        """The process id of the run."""
        return self.directory / "kafka.pid"

    @property
    def port(self) -> int | None:
        """Of the run, or of the last one; None before the first."""
        return port_in(self.properties)

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it."""
        assert self.port is not None, "written before the broker starts"
        return f"{HOST}:{self.port}"


def launch(jvm: Jvm, folder: BrokerFolder, *, port: int | None) -> subprocess.Popen[bytes]:
    """Starts the broker, in a session of its own; it does not answer yet."""
    folder.directory.mkdir(parents=True, exist_ok=True)
    copy_formatted(jvm, folder.data)
    chosen = choose_port(port, folder.port)
    folder.properties.write_text(server_properties(folder.data, port=chosen, controller_port=free_port()))
    with contextlib.suppress(FileNotFoundError):
        folder.log.replace(folder.log.with_suffix(".log.1"))
    with folder.log.open("wb") as log:
        child = subprocess.Popen(
            jvm.server(folder.properties),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    folder.pid_file.write_text(str(child.pid))
    return child


def wait_for_answer(folder: BrokerFolder, is_running: Callable[[], bool]) -> None:
    """Returns when clients can use it.

    Raises:
        BrokerEndedError: it ended.
        ValueError: it takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _answers(folder):
        if not is_running():
            raise BrokerEndedError(f"the local Kafka ended before it answered; {last_words(folder.log)}")
        if time.monotonic() > deadline:
            raise ValueError(f"the local Kafka gave no answer in {START_SECONDS:.0f} s; {last_words(folder.log)}")
        time.sleep(_POLL_SECONDS)  # reason: there is nothing to wait on but its port


def _answers(folder: BrokerFolder) -> bool:
    """Whether it takes connections and counts itself among the brokers that can hold partitions."""
    if not _serves(folder):
        return False
    try:
        with KafkaAdminClient(bootstrap_servers=folder.bootstrap_servers, bootstrap_timeout_ms=1_000) as client:
            return any(not broker["is_fenced"] for broker in client.describe_cluster()["brokers"])
    except KafkaError:
        return False


def _serves(folder: BrokerFolder) -> bool:
    """Whether it answers the simplest request; a client made earlier would leave a thread behind that keeps trying."""
    try:
        with socket.create_connection((HOST, folder.port or 0), timeout=1.0) as probe:
            probe.sendall(_WHICH_VERSIONS)
            return bool(probe.recv(1))
    except OSError:
        return False


def last_words(log: Path) -> str:
    """The end of a log and where the rest is, for an error message."""
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join([f"its log, {log.absolute()}, ends with:", *lines])
