"""When the item table of a model is searched through an index, and how that index follows the model.

Shapes: B users, R rows of the item table, D units, X rows that changed, W that got another item.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import structlog
import torch
from torch import Tensor

from deploy.scoring import metrics
from model.index import Index, index_of
from model.ranking import TopK, top_k

LISTS_PER_ROOT_OF_ROWS = 2.0
"""Then scoring the centres costs little beside looking through the lists."""
SEED = 1
CHECK_EVERY, CHECKED = 1_000, 10
"""Of so many users that an index searches for, one is searched for exactly, too: are the best ten there?"""


class Changed(NamedTuple):
    """What a version changed of the one before it."""

    rows_X: np.ndarray
    """Other weights or another item."""
    placed_W: np.ndarray
    """Another item, or none any more."""


class Indexing(NamedTuple):
    """What the settings say."""

    from_items: int | None
    """None: every table is scored as a whole."""
    share: float = 1.0
    """Of the lists, that a search looks through."""

    def index_for(self, item_RD: Tensor, *, before: Index | None, changed: Changed | None) -> Index | None:
        """The index of a table: the one before, where it can follow, else a new one; None for a small table."""
        if self.from_items is None or len(item_RD) <= self.from_items:
            return None
        if before is not None and changed is not None:
            return before.followed(item_RD, changed_X=changed.rows_X, placed_W=changed.placed_W)
        began = time.monotonic()
        lists = math.ceil(LISTS_PER_ROOT_OF_ROWS * math.sqrt(len(item_RD)))
        lists = min(lists, len(item_RD) - 1, 1 << 15)
        probes = math.ceil(self.share * lists)
        index = index_of(item_RD, lists=lists, probes=probes, rng=np.random.default_rng(SEED))
        seconds = round(time.monotonic() - began, 3)
        structlog.get_logger().info("index built", rows=len(item_RD), lists=lists, probes=probes, seconds=seconds)
        return index


EXACT = Indexing(from_items=None)


class Search:
    """The best items of users, by an index where there is one; keeps an eye on what that misses."""

    def __init__(self) -> None:
        self._unchecked = CHECK_EVERY

    def best(
        self,
        user_BD: Tensor,
        item_RD: Tensor,
        index: Index | None,
        *,
        k: int,
        excluded_BE: Tensor,
        live_R: Tensor,
    ) -> TopK:
        """As `model.ranking.top_k`."""
        if index is None:
            return top_k(user_BD, item_RD, k=k, excluded_BE=excluded_BE, live_R=live_R)
        found = index.search(user_BD, item_RD, k=k, excluded_BE=excluded_BE, live_R=live_R)
        self._unchecked += len(user_BD)
        if self._unchecked >= CHECK_EVERY:
            self._unchecked = 0
            exact = top_k(user_BD[:1], item_RD, k=min(k, CHECKED), excluded_BE=excluded_BE[:1], live_R=live_R)
            is_found_K = torch.isin(exact.row_BK, found.row_BK[:1])
            metrics.INDEX_CHECKED.inc(is_found_K.numel())
            metrics.INDEX_MISSED.inc(int((~is_found_K).sum()))
        return found
