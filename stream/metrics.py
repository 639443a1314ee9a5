"""What the stream worker counts and measures, in the default Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter("sasrec_events", "Events folded in, by topic and how they ended", ["topic", "outcome"])
EXAMPLES = Counter("sasrec_examples", "Examples sent to the trainer, by kind", ["kind"])
DEAD_LETTERS = Counter(
    "sasrec_dead_letters", "Messages that could not be read, by topic and reason", ["topic", "reason"]
)
CHUNK_RECORDS = Histogram(
    "sasrec_chunk_records", "Records handled together", buckets=(1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
)
CHUNK_SECONDS = Histogram("sasrec_chunk_seconds", "From a chunk's arrival in the worker to its last acknowledgement")
FORGOTTEN = Counter("sasrec_users_forgotten", "Users forgotten because they were inactive for too long")
RESTORED = Counter("sasrec_states_restored", "Records of `sequences` read to fill the store of a worker")
STALLED_SECONDS = Gauge(
    "sasrec_stalled_seconds", "How long nothing has been finished of some partition though something waits"
)
