"""No more of one category in a slate than is set, with propensities that stay exact.

The cap is applied before anything is drawn: of each category only the best candidates stay, as many as the cap less
the explored slots. Whatever the softmax then chooses, and wherever exploration falls, no category can hold more than
the cap; and the draw from what is left is the same draw, with the same propensities. Shapes: C candidates, A rows.
"""

from __future__ import annotations

import numpy as np

from deploy.scoring.space import NO_CATEGORY
from model.policies import Shortlist


def capped(shortlist: Shortlist, category_A: np.ndarray, *, most: int) -> Shortlist:
    """The candidates, best first, without those that come after `most` better ones of their category."""
    category_C = category_A[shortlist.row_C]
    keep_C = (nth_of_its_kind(category_C) < most) | (category_C == NO_CATEGORY)
    return shortlist._replace(row_C=shortlist.row_C[keep_C], score_C=shortlist.score_C[keep_C])


def nth_of_its_kind(kind_C: np.ndarray) -> np.ndarray:
    """How many of the same kind stand before each."""
    order_C = np.argsort(kind_C, kind="stable")
    sorted_C = kind_C[order_C]
    begins_C = np.concatenate(([True], sorted_C[1:] != sorted_C[:-1])) if len(kind_C) else np.zeros(0, dtype=np.bool_)
    first_C = np.maximum.accumulate(np.where(begins_C, np.arange(len(kind_C)), 0))
    nth_C = np.empty(len(kind_C), dtype=np.int64)
    nth_C[order_C] = np.arange(len(kind_C)) - first_C
    return nth_C
