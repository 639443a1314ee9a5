"""What the scoring worker tells about itself."""

from __future__ import annotations

from collections import deque

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

WINDOW = 2_000
"""Slates over which the moving figures are taken."""

RECOMMENDATIONS = Counter("sasrec_recommendations", "Slates published and acknowledged.", ["policy"])
RECOMMENDED_VERSIONS = Gauge("sasrec_recommended_versions", "Model versions that served a slate since the start.")
COALESCED = Counter("sasrec_coalesced_clicks", "Clicks whose slate was left out for that of a newer click.")
ELSEWHERE = Counter("sasrec_routed_elsewhere", "Clicks and requests of users whom another system answers.")
LIVE_MODEL = Gauge("sasrec_live_model_info", "1 for the version that serves.", ["lineage", "version"])
TRAINED_THROUGH = Gauge(
    "sasrec_live_model_trained_through_arrival_seconds",
    "When the newest click that the live model has learnt from arrived, in seconds since 1970.",
)
SWAPS = Counter("sasrec_model_swaps", "Models that took over, the first one included.")
SWAP_SECONDS = Histogram(
    "sasrec_model_swap_seconds",
    "From an announcement read to its model serving, beside the one that serves meanwhile.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
DELTAS_APPLIED = Counter("sasrec_deltas_applied", "Deltas applied to the copy of the model that nobody reads.")
SUPERSEDED = Counter(
    "sasrec_superseded_announcements", "Announcements passed over: of an older trainer, lineage or version."
)
BROKEN_CHECKPOINTS = Counter(
    "sasrec_broken_checkpoints", "Announced checkpoints and deltas that could not be served from."
)
LATENCY = Histogram(
    "sasrec_click_to_recommendation_seconds",
    "From the click's arrival in Kafka to the acknowledged slate.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
LATENCY_P50 = Gauge("sasrec_click_to_recommendation_p50_seconds", "Median of the last slates caused by a click.")
LATENCY_P99 = Gauge("sasrec_click_to_recommendation_p99_seconds", "99th percentile of the same.")
PROPENSITY_CHECK = Gauge(
    "sasrec_propensity_check",
    "Mean of K/(N p) over the items last served: 1 where propensities are true and every item has a chance.",
    ["policy"],
)
BATCH_USERS = Histogram(
    "sasrec_scoring_batch_users", "Users ranked together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
BATCH_SECONDS = Histogram(
    "sasrec_scoring_batch_seconds",
    "From a batch taken to its slates handed to the producer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
INDEX_CHECKED = Counter(
    "sasrec_index_checked_items", "Best items of users who were searched for exactly, too, beside the index."
)
INDEX_MISSED = Counter("sasrec_index_missed_items", "Of these the ones that the index did not find.")
KNOWN_USERS = Gauge("sasrec_scoring_users", "Users whose history is held.")


class Moving:
    """The last `WINDOW` values of something."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Lets the oldest go when the window is full."""
        self._values.append(value)

    def quantile(self, share: float) -> float:
        """0 where nothing was added yet."""
        return float(np.quantile(np.array(self._values), share)) if self._values else 0.0

    def mean(self) -> float:
        """0 where nothing was added yet."""
        return float(np.mean(np.array(self._values))) if self._values else 0.0
