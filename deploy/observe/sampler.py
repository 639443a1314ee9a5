"""Looks at the running system once a second, from a thread of its own: a slow answer never holds up the supervisor."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kafka.errors import KafkaError

from deploy.local.supervisor import ProcessState
from deploy.local.watchdog import Observation
from deploy.observe.offsets import Offsets, lags
from deploy.observe.scrape import Sample, scrape
from deploy.observe.snapshot import Snapshot
from deploy.observe.tail import Tail
from deploy.settings import Settings
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS, REQUESTS

PERIOD_SECONDS = 1.0
STOP_SECONDS = 1.0
RATED = (CLICKS, IMPRESSIONS, REQUESTS, RECOMMENDATIONS)
EXAMPLES_TRAINED = "sasrec_examples_trained_total"
HIT_RATE = "sasrec_prequential_hr10"
SHOWN = (EXAMPLES_TRAINED, HIT_RATE)


class Look(NamedTuple):
    """What was seen at one moment: for people, and for the watchdog."""

    snapshot: Snapshot
    observation: Observation


class Rate:
    """How fast a count grows, smoothed over a few looks; one that falls back has started anew."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._per_second = 0.0

    def update(self, count: float, *, at_seconds: float) -> float:
        """The rate per second, now that the count is this."""
        if self._last is not None and count >= self._last[0] and at_seconds > self._last[1]:
            latest = (count - self._last[0]) / (at_seconds - self._last[1])
            self._per_second += 0.5 * (latest - self._per_second)
        self._last = (count, at_seconds)
        return self._per_second


class Sampler:
    """Keeps the newest look in `newest`; `states` gives the supervised processes."""

    def __init__(self, settings: Settings, states: Callable[[], Sequence[ProcessState]]) -> None:
        self.newest: Look | None = None
        self._snapshot = Snapshot()
        self._settings = settings
        self._states = states
        self._stop = threading.Event()
        self._offsets = Offsets(settings.kafka)
        self._tail = Tail(settings.kafka)
        self._rates = {name: Rate() for name in (*RATED, EXAMPLES_TRAINED)}
        self._began_with = self._recommendations()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def _recommendations(self) -> int | None:
        """How many there are; None where the broker does not say yet, as right after it made the topics."""
        try:
            return self._offsets.totals([RECOMMENDATIONS])[RECOMMENDATIONS]
        except KafkaError:  # reason: the first look that is answered counts from there
            return None

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the look under way; where that takes too long, it is left to end with the process."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self._tail.close()
            self._offsets.close()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            self.newest = self._look()

    def _look(self) -> Look:
        states = tuple(self._states())
        metrics = {state.name: found for state in states if (found := self._scrape(state)) is not None}
        samples = [sample for found in metrics.values() for sample in found]
        now = time.monotonic()
        try:
            progress = self._offsets.progress()
            self._snapshot = self._looked(samples, at_seconds=now)
        except KafkaError:  # reason: it is away for a while, and what was known before is shown
            progress = None
        return Look(
            dataclasses.replace(self._snapshot, processes=states, lag=lags(progress) if progress else None),
            Observation(at_seconds=now, answered=frozenset(metrics), progress=progress),
        )

    def _scrape(self, state: ProcessState) -> tuple[Sample, ...] | None:
        if state.pid is None:
            return None
        host = self._settings.observe.metrics_host
        return scrape(self._settings.state.directory, state.name, host=host, pid=state.pid, only=SHOWN)

    def _looked(self, samples: Sequence[Sample], *, at_seconds: float) -> Snapshot:
        """All but the processes and the lag."""
        totals = self._offsets.totals(RATED)
        if self._began_with is None:
            self._began_with = totals[RECOMMENDATIONS]
        self._tail.poll()
        seen = self._tail.seen
        trained = next((one.value for one in samples if one.name == EXAMPLES_TRAINED), None)
        return Snapshot(
            per_second={name: self._rates[name].update(total, at_seconds=at_seconds) for name, total in totals.items()},
            recommendations=totals[RECOMMENDATIONS] - self._began_with,
            examples_trained=None if trained is None else int(trained),
            examples_per_second=self._rates[EXAMPLES_TRAINED].update(trained or 0.0, at_seconds=at_seconds),
            hit_rate={one.labels["ranker"]: one.value for one in samples if one.name == HIT_RATE},
            model_version=seen.newest.model_version if seen.newest else None,
            versions=frozenset(seen.versions),
            learnt_through_ms=seen.newest.trained_through_arrival_ms if seen.newest else None,
            latency=seen.latency(),
            user=seen.user(),
        )
