"""What the HTTP process tells about itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ANSWERS = Counter("sasrec_http_answers", "Answers over HTTP, by route and status.", ["route", "status"])
SECONDS = Histogram(
    "sasrec_http_seconds",
    "From a request read to its answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
WAITING = Gauge("sasrec_http_waiting", "Requests that wait for a slate.")
