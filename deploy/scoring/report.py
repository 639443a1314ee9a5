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
        self._checks: dict[str, Moving] = {}
        """By policy."""
        self._versions = 0
        self._version: dict[str, str] = {}
        """By policy: recommenders that share the surface may serve different models at a time."""

    def acknowledged(self, slates: Iterable[Recommendation], times_ms: Iterable[int]) -> None:
        """Counts slates that stand on `recommendations`, each with the time since when."""
        for slate, at_ms in zip(slates, times_ms, strict=True):
            metrics.RECOMMENDATIONS.labels(policy=slate.policy).inc()
            self._check_propensities(slate)
            self._count_version(slate)
            if slate.cause is not None and slate.cause.topic == CLICKS:
                self._latency.add((at_ms - slate.cause.arrived_at_ms) / 1_000)
                metrics.LATENCY.observe((at_ms - slate.cause.arrived_at_ms) / 1_000)
        metrics.LATENCY_P50.set(self._latency.quantile(0.5))
        metrics.LATENCY_P99.set(self._latency.quantile(0.99))
        for policy, check in self._checks.items():
            metrics.PROPENSITY_CHECK.labels(policy=policy).set(check.mean())
        metrics.RECOMMENDED_VERSIONS.set(self._versions)

    def _check_propensities(self, slate: Recommendation) -> None:
        """The sum of 1 / (N p) over a slate is 1 on the mean where propensities are true: docs/propensities.md, 3."""
        if slate.items and slate.eligible_count:
            served = sum(1.0 / item.propensity for item in slate.items if item.propensity is not None)
            self._checks.setdefault(slate.policy, Moving()).add(served / slate.eligible_count)

    def _count_version(self, slate: Recommendation) -> None:
        if slate.model_version is not None and self._version.get(slate.policy) != slate.model_version:
            is_new = slate.model_version not in self._version.values()
            self._version[slate.policy] = slate.model_version
            self._versions += is_new
