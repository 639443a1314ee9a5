"""One process under the supervisor: how it starts, why it ended, and how long to wait before the next start."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_LOG_BYTES = 10 << 20
TAIL_BYTES = 8_192
MAX_NICENESS = 19
AUTOGROUP_TRIES = 5
AUTOGROUP_WAIT_SECONDS = 0.11
SHOWN_CHARACTERS = 160


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackOff:
    """How long to wait before a process that died is started again: doubling, until it has run for a good while."""

    first_seconds: float
    longest_seconds: float
    good_while_seconds: float
    deaths: int = 0

    def after(self, *, ran_seconds: float) -> BackOff:
        """The back-off once the process died after so many seconds."""
        deaths = 1 if ran_seconds >= self.good_while_seconds else self.deaths + 1
        return dataclasses.replace(self, deaths=deaths)

    @property
    def wait_seconds(self) -> float:
        """The wait before the next start."""
        return float(min(self.longest_seconds, self.first_seconds * 2.0 ** min(self.deaths - 1, 32)))


class Scheduling(NamedTuple):
    """How a process takes turns with the others on its processor cores."""

    niceness: int = 0
    """Its share of a core falls by a fifth with each step."""
    interrupts: bool = True
    """Whether a process that wakes may take the core from one that runs. One that computes without end keeps its share
    without that (Linux's batch policy), and those that answer wait less for it.
    """


LIKE_OTHERS = Scheduling()


class Child:
    """A running process in a session of its own, so that Ctrl-C in the terminal reaches its supervisor alone.

    Its standard input is a pipe that closes when the supervisor ends: see `tether`.
    """

    def __init__(self, command: Sequence[str], *, log: Path, scheduling: Scheduling = LIKE_OTHERS) -> None:
        self._log = log
        self._killed_because: str | None = None
        with _appended(log) as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        # Before it has threads of its own: those inherit it, and so do its children.
        if not scheduling.interrupts:
            _never_interrupt(self._process.pid)
        if scheduling.niceness:
            _give_way(self._process.pid, scheduling.niceness)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ended(self) -> str | None:
        """Why it ended: who killed it, or its exit status and the last line of its log; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        self._close_pipe()
        if self._killed_because:
            return self._killed_because
        return f"{_status_words(status)}: {last_line(self._log) or 'it said nothing'}"

    def terminate(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def kill(self, *, because: str) -> None:
        """Ends it and all that it started, at once."""
        self._killed_because = because
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, or None where it still runs after so many seconds."""
        try:
            status = self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return None
        self._close_pipe()
        return status

    def _close_pipe(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()


def _never_interrupt(pid: int) -> None:
    """Where the system has such a policy."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # it is gone, or the system does not let us
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def _give_way(pid: int, niceness: int) -> None:
    """By a lower share of the processor.

    Where Linux weighs sessions against each other (autogroup), niceness counts only inside one, and a child has its
    own: the session is given the same.
    """
    absolute = min(os.getpriority(os.PRIO_PROCESS, 0) + niceness, MAX_NICENESS)
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, absolute)
    session = Path(f"/proc/{pid}/autogroup")
    for _ in range(AUTOGROUP_TRIES):
        with contextlib.suppress(OSError):  # no such file, a process that is gone, or a /proc that is read only
            try:
                session.write_text(str(absolute))
            except BlockingIOError:  # the kernel takes such a change ten times a second
                time.sleep(AUTOGROUP_WAIT_SECONDS)
                continue
        return


def last_line(log: Path) -> str:
    """What the process said last, in a few words: of a structured line its event and error; empty before that."""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - TAIL_BYTES))
        spoken = [line for line in lines.read().decode(errors="replace").splitlines() if line.strip()]
    return _words(spoken[-1])[:SHOWN_CHARACTERS] if spoken else ""


def _words(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(event, dict):
        return line.strip()
    error = str(event.get("exception") or event.get("error") or "").strip().splitlines()[-1:]
    return ": ".join([str(event.get("event", line)), *error])


def _status_words(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _appended(log: Path) -> BinaryIO:
    """The log, open for more; what grew too long in earlier runs is put aside."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log.open("ab")
