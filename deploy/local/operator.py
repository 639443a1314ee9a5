"""Runs a machine from its start to its end, as a person at the terminal would: wait, watch, settle the accounts."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable

from deploy.local.machine import Machine
from deploy.local.summary import ExitReason, Ledger, Run
from deploy.observe.screen import Screen
from deploy.observe.snapshot import Snapshot

TEND_SECONDS = 0.2
READY_SECONDS = 120.0


class StopRequestedError(Exception):
    """Ctrl-C or SIGTERM came: whatever is under way ends here."""


class Operator:
    """One run of `machine`, shown on `screen`, until its time is up or `stop` is set."""

    def __init__(self, machine: Machine, screen: Screen, stop: threading.Event) -> None:
        self._machine = machine
        self._screen = screen
        self._stop = stop
        self._began_seconds = time.monotonic()

    def run(self, *, audience: bool, seconds: float | None) -> Run:
        """Starts everything and watches; with `seconds` it ends by itself, once every message has its outcome.

        1. Kafka, topics, processes; then the accounts as they stand, so that only this run is judged.
        2. The audience comes, and the seconds begin.
        3. It is noted who is alive, the audience goes, and the last message gets its outcome.

        Raises:
            ValueError: Kafka cannot be started, or its topics are not as they must be.
        """
        try:
            # 1.
            self._start()
            before = self._settled() if seconds else None
            # 2.
            if audience:
                self._machine.start_audience()
            self._began_seconds = time.monotonic()
            self._until(lambda: self._ran_seconds >= (seconds or math.inf))
            # 3.
            ran_seconds, last = self._ran_seconds, self._last()
            produced = self._machine.stop_audience().acknowledged if audience else None
            after = self._settled()
        except StopRequestedError:
            reason: ExitReason = "stopped" if seconds is None else "interrupted"
            return Run(reason, self._ran_seconds, self._last(), produced=None, ledger=None)
        ledger = after.since(before) if before and after else None
        return Run("time is up", ran_seconds, last, produced=produced, ledger=ledger)

    @property
    def _ran_seconds(self) -> float:
        return time.monotonic() - self._began_seconds

    def _start(self) -> None:
        self._machine.start_kafka()
        self._until(self._machine.kafka_answers, waiting_for=self._machine.kafka_news)
        self._machine.start_applications()
        self._until(self._machine.applications_work, within_seconds=READY_SECONDS)

    def _settled(self) -> Ledger | None:
        """The accounts once the stream worker has nothing left to do; None where that takes too long."""
        bound = self._machine.settings.supervisor.catch_up_seconds
        caught_up = self._until(self._machine.stream_has_caught_up, within_seconds=bound)
        return self._machine.ledger() if caught_up else None

    def _until(
        self,
        condition: Callable[[], bool],
        *,
        within_seconds: float = math.inf,
        waiting_for: Callable[[], str] = lambda: "starting the processes",
    ) -> bool:
        """Tends and shows the machine until the condition holds (True) or it takes too long (False).

        Raises:
            StopRequestedError: before either.
        """
        deadline = time.monotonic() + within_seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._machine.tend()
            look = self._machine.look
            if look is None:
                self._screen.wait(waiting_for())
            else:
                self._screen.show(look.snapshot)
            if self._stop.wait(TEND_SECONDS):
                raise StopRequestedError
        return True

    def _last(self) -> Snapshot:
        """The newest figures, and the processes as they are this moment."""
        look = self._machine.look
        return dataclasses.replace(look.snapshot if look else Snapshot(), processes=tuple(self._machine.states))
