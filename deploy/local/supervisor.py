"""Keeps the processes of this machine running: starts them, starts again what dies and says why, stops them in order.

Whoever owns it calls `tend` several times a second. Nothing is ever given up: a process that dies at once is started
again after a wait that doubles up to a bound. Only what was started here is ever stopped or killed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from deploy.local.child import LIKE_OTHERS, BackOff, Child, Scheduling
from deploy.local.settings import SupervisorSettings

KILL_SECONDS = 5.0
State = Literal["running", "waiting"]


class Program(NamedTuple):
    """A process to keep running; `kind` says of whose consumer group it is one."""

    name: str
    kind: str
    command: Sequence[str]
    scheduling: Scheduling = LIKE_OTHERS
    """How it takes turns with this process and with the other programs."""


@dataclasses.dataclass(kw_only=True)
class Kept:
    """One program and what became of it so far."""

    program: Program
    back_off: BackOff
    child: Child | None = None
    started_at_seconds: float = 0.0
    next_start_seconds: float = 0.0
    restarts: int = 0
    reason: str | None = None
    """Why it last ended."""


class ProcessState(NamedTuple):
    """One program as people see it."""

    name: str
    kind: str
    state: State
    pid: int | None
    started_at_seconds: float
    """Monotonic."""
    restarts: int
    reason: str | None
    """Why it was last restarted."""


class Supervisor:
    """The processes of this machine; `clock` gives monotonic seconds, `tell` hears what a person should know."""

    def __init__(
        self,
        settings: SupervisorSettings,
        *,
        logs: Path,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._logs = logs
        self._clock = clock
        self._kept: dict[str, Kept] = {}
        self._tell = tell

    def start(self, program: Program) -> None:
        """Starts a program and keeps it running from now on."""
        settings = self._settings
        back_off = BackOff(
            first_seconds=settings.first_back_off_seconds,
            longest_seconds=settings.longest_back_off_seconds,
            good_while_seconds=settings.good_while_seconds,
        )
        self._kept[program.name] = Kept(program=program, back_off=back_off)
        self._launch(self._kept[program.name])

    def tend(self) -> None:
        """Notices what has ended and starts again what has waited long enough."""
        for kept in self._kept.values():
            if kept.child is not None:
                self._notice(kept, kept.child)
            elif self._clock() >= kept.next_start_seconds:
                self._launch(kept)

    def restart(self, name: str, *, because: str) -> None:
        """Kills a process that runs but does not work; `tend` starts it again."""
        child = self._kept[name].child
        if child is not None:
            child.kill(because=because)

    def stop(self, names: Iterable[str], *, within_seconds: float) -> list[str]:
        """Asks processes to end, all at once, and waits; returns those that had to be killed because they did not."""
        stopping = [self._kept.pop(name) for name in names]
        children = {kept.program.name: kept.child for kept in stopping if kept.child is not None}
        for child in children.values():
            child.terminate()
        deadline = self._clock() + within_seconds
        killed = [name for name, child in children.items() if child.wait(deadline - self._clock()) is None]
        for name in killed:
            self._kill(name, children[name], because=f"it did not stop within {within_seconds:.1f} s")
        return killed

    def states(self) -> list[ProcessState]:
        """Every program in the order in which they were started; safe to call from any thread."""
        return [_state(kept) for kept in list(self._kept.values())]

    def log_of(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._logs / f"{name}.log"

    def _launch(self, kept: Kept) -> None:
        kept.child = Child(kept.program.command, log=self.log_of(kept.program.name), scheduling=kept.program.scheduling)
        kept.started_at_seconds = self._clock()

    def _notice(self, kept: Kept, child: Child) -> None:
        reason = child.ended()
        if reason is None:
            return
        now = self._clock()
        kept.child = None
        kept.back_off = kept.back_off.after(ran_seconds=now - kept.started_at_seconds)
        kept.next_start_seconds = now + kept.back_off.wait_seconds
        kept.restarts += 1
        kept.reason = reason
        self._tell(f"{kept.program.name}: {reason}; starting again in {kept.back_off.wait_seconds:g} s")

    def _kill(self, name: str, child: Child, *, because: str) -> None:
        child.kill(because=because)
        child.wait(KILL_SECONDS)
        self._tell(f"{name}: killed, because {because}")


def _state(kept: Kept) -> ProcessState:
    return ProcessState(
        name=kept.program.name,
        kind=kept.program.kind,
        state="running" if kept.child is not None else "waiting",
        pid=kept.child.pid if kept.child else None,
        started_at_seconds=kept.started_at_seconds,
        restarts=kept.restarts,
        reason=kept.reason,
    )
