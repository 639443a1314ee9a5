"""Turns acknowledged slates into metrics."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.scoring import metrics
from deploy.scoring.metrics import Moving
from stream.events import Recommendation
from stream.topics import CLICKS


class Report:
    """The moving figures of one worker."""

    def __init__(self) -> None:
        self._latency = Moving()
        self._check = Moving()
        self._versions = 0
        self._version: str | None = None

    def acknowledged(self, slates: Iterable[Recommendation], times_ms: Iterable[int]) -> None:
        """Counts slates that stand on `recommendations`, each with the time since when."""
        for slate, at_ms in zip(slates, times_ms, strict=True):
            metrics.RECOMMENDATIONS.labels(policy=slate.policy).inc()
            self._check_propensities(slate)
            if slate.model_version not in {None, self._version}:
                self._version, self._versions = slate.model_version, self._versions + 1
            if slate.cause is not None and slate.cause.topic == CLICKS:
                self._latency.add((at_ms - slate.cause.arrived_at_ms) / 1_000)
                metrics.LATENCY.observe((at_ms - slate.cause.arrived_at_ms) / 1_000)
        metrics.LATENCY_P50.set(self._latency.quantile(0.5))
        metrics.LATENCY_P99.set(self._latency.quantile(0.99))
        metrics.PROPENSITY_CHECK.set(self._check.mean())
        metrics.RECOMMENDED_VERSIONS.set(self._versions)

    def _check_propensities(self, slate: Recommendation) -> None:
        """The sum of 1 / (N p) over a slate is 1 on the mean where propensities are true: docs/propensities.md, 3."""
        if slate.items and slate.eligible_count:
            served = sum(1.0 / item.propensity for item in slate.items if item.propensity is not None)
            self._check.add(served / slate.eligible_count)
