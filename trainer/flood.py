"""Bounds what one user or one item can teach: a bot that clicks all day is one voice, not the crowd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from stream.examples import ClickExample, Example

Reason = Literal["user_flood", "item_flood"]


class Let(NamedTuple):
    """What of a micro-batch is learnt, and how many examples are not, by reason."""

    examples: list[Example]
    dropped: Counter[Reason]


class Flood(msgspec.Struct):
    """Examples of the window so far, by user and by clicked item; at most one entry for each example of the window.

    Windows follow one another without overlap, counted in examples: the same examples are let through wherever
    micro-batches end and whatever the clock says (I9).
    """

    seen: int = 0
    users: dict[str, int] = {}
    items: dict[str, int] = {}

    def let(self, examples: Sequence[Example], *, window: int, per_user: int, per_item: int) -> Let:
        """The examples within both bounds, in their order."""
        kept: list[Example] = []
        dropped: Counter[Reason] = Counter()
        for example in examples:
            reason = self._over(example, per_user=per_user, per_item=per_item)
            if reason is None:
                kept.append(example)
            else:
                dropped[reason] += 1
            self.seen += 1
            if self.seen >= window:
                self.seen, self.users, self.items = 0, {}, {}
        return Let(kept, dropped)

    def _over(self, example: Example, *, per_user: int, per_item: int) -> Reason | None:
        by_user = self.users.get(example.user_id, 0)
        item_id = example.item_id if isinstance(example, ClickExample) else None
        by_item = 0 if item_id is None else self.items.get(item_id, 0)
        if by_user >= per_user:
            return "user_flood"
        if by_item >= per_item:
            return "item_flood"
        self.users[example.user_id] = by_user + 1
        if item_id is not None:
            self.items[item_id] = by_item + 1
        return None
