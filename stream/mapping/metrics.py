"""What a mapper counts, in the default Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter

MESSAGES = Counter("sasrec_mapping_messages", "Messages of a company's topics, by how they ended", ["outcome"])
EVENTS = Counter("sasrec_mapped_events", "Events written to our topics by a mapping, by topic", ["record"])
