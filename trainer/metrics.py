"""What the trainer shows of itself, in the default Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EXAMPLES_TRAINED = Counter("sasrec_examples_trained_total", "Examples that changed the model.")
EXAMPLES_DROPPED = Counter(
    "sasrec_examples_dropped_total",
    "Examples that changed nothing: repeats, and those set aside as unreadable or not finite.",
    ["reason"],
)
PREQUENTIAL_HR10 = Gauge(
    "sasrec_prequential_hr10", "Share of the last clicks that the ranker had among its first ten.", ["ranker"]
)
PREQUENTIAL_NDCG10 = Gauge("sasrec_prequential_ndcg10", "NDCG@10 of the ranker over the last clicks.", ["ranker"])
LOSS = Gauge("sasrec_loss", "Training loss of the last micro-batch.")
STEP_SECONDS = Histogram(
    "sasrec_step_seconds",
    "From a micro-batch in hand to the weights changed by it, in seconds.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
PUBLISHED_VERSION = Gauge("sasrec_published_version", "Version of the newest checkpoint announced by this trainer.")
EFFECTIVE_SAMPLE_SIZE = Gauge(
    "sasrec_effective_sample_size", "Of the served clicks in the window, with the cap in force."
)
PROPENSITY_CAP = Gauge("sasrec_propensity_cap", "Largest 1/propensity in force.")
CLICKS_WITHOUT_PROPENSITY = Counter(
    "sasrec_clicks_without_propensity_total",
    "Served clicks whose propensity was not logged (estimated here) or was promised and invalid (not learnt from).",
)
CATALOGUE_ITEMS = Gauge("sasrec_catalogue_items", "Items that have a row.")
TRAINED_THROUGH_ARRIVAL = Gauge(
    "sasrec_trained_through_arrival_seconds",
    "Kafka's timestamp of the newest click learnt, in seconds since 1970.",
)
