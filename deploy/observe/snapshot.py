"""What the live table shows of one moment; made by the sampler, drawn by `table`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from deploy.local.supervisor import ProcessState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommended:
    """One slot of the slate shown."""

    title: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserView:
    """One user, by title: what was clicked, oldest first, and what is recommended now."""

    user_id: str
    clicks: tuple[str, ...]
    slate: tuple[Recommended, ...]
    model_version: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Click in Kafka to recommendation in Kafka, over the last slates that a click caused; in milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """None stands for what is not known yet."""

    processes: tuple[ProcessState, ...] = ()
    per_second: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Messages per second, by topic."""
    recommendations: int = 0
    """Since the start."""
    lag: Mapping[str, int] | None = None
    """Messages not done yet, by consumer group; None while Kafka does not answer."""
    examples_trained: int | None = None
    examples_per_second: float = 0.0
    hit_rate: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Prequential HR@10 over the last clicks, by ranker."""
    model_version: str | None = None
    """Of the newest recommendation that a model made."""
    versions: frozenset[str] = frozenset()
    """All that were seen on recommendations."""
    learnt_through_ms: int | None = None
    """When the newest click that the live model has learnt from arrived in Kafka; milliseconds since 1970."""
    latency: Latency | None = None
    user: UserView | None = None
