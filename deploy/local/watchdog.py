"""Tells a process that works from one that only runs (Faust's best-known fault is a consumer that dies in silence).

Two signs: the metrics endpoint stops answering, or a consumer group has lag and commits nothing. Pure: whoever looks
passes in what was seen and when.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from deploy.local.settings import SupervisorSettings
from deploy.local.supervisor import ProcessState

Position = tuple[str, int]
"""A topic's name and a partition."""


class Progress(NamedTuple):
    """How far a consumer group is in one partition."""

    committed: int
    end: int

    @property
    def lag(self) -> int:
        """Messages that are not done."""
        return max(0, self.end - self.committed)


class Observation(NamedTuple):
    """What was seen at one moment."""

    at_seconds: float
    """Monotonic, by the supervisor's clock."""
    answered: Collection[str]
    """Names of the processes whose metrics endpoint answered."""
    progress: Mapping[str, Mapping[Position, Progress]] | None
    """Per kind of process; None while Kafka does not answer, when nobody can make progress."""


class Fault(NamedTuple):
    """A process to restart, and why."""

    name: str
    reason: str


class Watchdog:
    """Remembers when every process was last seen to work."""

    def __init__(self, settings: SupervisorSettings) -> None:
        self._settings = settings
        self._answered: dict[tuple[str, int], float] = {}
        self._moved: dict[tuple[str, Position], tuple[int, float]] = {}

    def observe(self, states: Sequence[ProcessState], seen: Observation) -> list[Fault]:
        """The processes that should be restarted now."""
        silent = self._silent(states, seen)
        stalled = self._stalled_kinds(states, seen)
        named = {fault.name for fault in silent}
        running = [state for state in states if state.pid is not None and state.name not in named]
        return silent + [Fault(state.name, stalled[state.kind]) for state in running if state.kind in stalled]

    def _silent(self, states: Sequence[ProcessState], seen: Observation) -> list[Fault]:
        faults = []
        for state in states:
            if state.pid is None:
                continue
            if state.name in seen.answered:
                self._answered[state.name, state.pid] = seen.at_seconds
            elif reason := self._silence(state, state.pid, seen.at_seconds):
                faults.append(Fault(state.name, reason))
        return faults

    def _silence(self, state: ProcessState, pid: int, now: float) -> str | None:
        settings = self._settings
        last = self._answered.get((state.name, pid))
        if last is None and now - state.started_at_seconds > settings.start_seconds:
            return f"its metrics endpoint did not answer within {settings.start_seconds:g} s of its start"
        if last is not None and now - last > settings.silence_seconds:
            return f"its metrics endpoint has not answered for {settings.silence_seconds:g} s"
        return None

    def _stalled_kinds(self, states: Sequence[ProcessState], seen: Observation) -> dict[str, str]:
        if seen.progress is None:
            self._moved.clear()
            return {}
        starts = {
            state.kind: state.started_at_seconds for state in sorted(states, key=lambda one: one.started_at_seconds)
        }
        stalled = {}
        for kind, partitions in seen.progress.items():
            since = [
                self._still_since(kind, where, progress, seen.at_seconds) for where, progress in partitions.items()
            ]
            still_since = max(min(since, default=seen.at_seconds), starts.get(kind, seen.at_seconds))
            if seen.at_seconds - still_since > self._settings.stall_seconds:
                stalled[kind] = f"its group had lag and committed nothing for {self._settings.stall_seconds:g} s"
        return stalled

    def _still_since(self, kind: str, where: Position, progress: Progress, now: float) -> float:
        committed, since = self._moved.get((kind, where), (None, now))
        if committed != progress.committed or progress.lag == 0:
            since = now
        self._moved[kind, where] = (progress.committed, since)
        return since
