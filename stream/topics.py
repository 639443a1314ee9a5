"""Every topic, declared once: its name, what its key is, how long it is kept, who writes it."""

from __future__ import annotations

import dataclasses
from typing import Literal

Cleanup = Literal["delete", "compact"]

CLICKS = "clicks"
IMPRESSIONS = "impressions"
REQUESTS = "requests"
SEQUENCES = "sequences"
EXAMPLES = "examples"
RECOMMENDATIONS = "recommendations"
MODELS = "models"
ITEMS = "items"
MAPPED = "mapped"
"""No topic: what of a company's own topics cannot be read goes to `mapped.dlq`."""

DEAD_LETTER_SUFFIX = ".dlq"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic as `sasrec-stream topics create` makes it, by its name without the prefix."""

    name: str
    key: Literal["user_id", "item_id", "model", "as read"]
    cleanup: Cleanup
    written_by: str
    read_by: str
    what: str
    keeps_tombstones: bool = False
    """A tombstone is a fact that whoever reads the topic years later must still find, not a note to forget a key."""

    @property
    def partitioned_by_user(self) -> bool:
        """Topics keyed by user share one partition count and one partitioner: the join depends on it."""
        return self.key == "user_id"


def _dead_letters(name: str, *, what: str) -> Topic:
    return Topic(
        name=name + DEAD_LETTER_SUFFIX,
        key="as read",
        cleanup="delete",
        written_by="whoever could not read it",
        read_by="operators",
        what=f"{what} that could not be read, raw, with the reason in headers",
    )


_TOPICS = (
    Topic(
        name=CLICKS,
        key="user_id",
        cleanup="delete",
        written_by="applications",
        read_by="stream worker",
        what="a user chose an item",
    ),
    Topic(
        name=IMPRESSIONS,
        key="user_id",
        cleanup="delete",
        written_by="applications",
        read_by="stream worker",
        what="which items of a slate came into view",
    ),
    Topic(
        name=REQUESTS,
        key="user_id",
        cleanup="delete",
        written_by="applications",
        read_by="scoring worker",
        what="recommend now, click or not",
    ),
    Topic(
        name=SEQUENCES,
        key="user_id",
        cleanup="compact",
        written_by="stream worker",
        read_by="stream worker (recovery), scoring worker, full retrain",
        what="per user: the last items, open slates, offsets applied; the changelog of the Faust table (MessagePack)",
    ),
    Topic(
        name=EXAMPLES,
        key="user_id",
        cleanup="delete",
        written_by="stream worker",
        read_by="trainer",
        what="what the trainer learns from (MessagePack)",
    ),
    Topic(
        name=RECOMMENDATIONS,
        key="user_id",
        cleanup="delete",
        written_by="scoring worker, other recommenders",
        read_by="applications, stream worker",
        what="a slate with the propensity of every item",
    ),
    Topic(
        name=MODELS,
        key="model",
        cleanup="compact",
        written_by="trainer, gate",
        read_by="scoring worker, trainer",
        what="the checkpoint to serve from",
    ),
    Topic(
        name=ITEMS,
        key="item_id",
        cleanup="compact",
        written_by="applications",
        read_by="scoring worker",
        what="title, category, availability; a tombstone withdraws the item",
        keeps_tombstones=True,
    ),
)

_WITH_DEAD_LETTERS = (CLICKS, IMPRESSIONS, REQUESTS, RECOMMENDATIONS, ITEMS, EXAMPLES)

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        *_TOPICS,
        *(_dead_letters(name, what=f"messages of `{name}`") for name in _WITH_DEAD_LETTERS),
        _dead_letters(MAPPED, what="messages of a company's own topics"),
    )
}
