"""From closed slates to the pairs inside them: docs/propensities.md section 4, term (a).

A clicked item is set against what was shown beside it and not clicked: where an impression says which items came into
view only against those, else against all. A pinned (`fixed`) item takes part like any other; a slate without both a
clicked and an unclicked item says nothing here; what was clicked in an earlier example of the slate is neither.
Shapes: S slates, T positions, K slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from model.catalogue import PADDING
from stream.examples import ShownItem, SlateExample
from trainer.step import Slates
from trainer.weights import Lack, Weigher, lack_of, lacks_of

RowsOf = Callable[[Sequence[str]], np.ndarray]


def collate_slates(
    examples: Sequence[SlateExample], rows_of: RowsOf, *, weigher: Weigher, max_length: int
) -> Slates | None:
    """The slates that teach something, as tensors; None where there is none.

    A slate for a user without a history is left out: the network predicts nothing from nothing.
    """
    teaching = [example for example in examples if example.context and _teaches(example)]
    if not teaching:
        return None
    length = min(max_length, max(len(example.context) for example in teaching))
    slots = max(len(example.items) for example in teaching)
    row_ST = np.full((len(teaching), length), PADDING, dtype=np.int64)
    item_SK = np.full((len(teaching), slots), PADDING, dtype=np.int64)
    clicked_SK, negative_SK = (np.zeros((len(teaching), slots), dtype=np.bool_) for _ in range(2))
    weight_SK = np.zeros((len(teaching), slots), dtype=np.float32)
    for index, example in enumerate(teaching):
        context, shown = example.context[-length:], slice(len(example.items))
        row_ST[index, length - len(context) :] = rows_of(context)
        item_SK[index, shown] = rows_of([item.item_id for item in example.items])
        clicked_SK[index, shown] = [item.clicked and _counts(item) for item in example.items]
        negative_SK[index, shown] = _negatives(example)
        weight_SK[index, shown] = [weigher.position_weight(item.position, seen=item.seen) for item in example.items]
    is_item_SK = item_SK != PADDING
    return Slates(
        row_ST=torch.from_numpy(row_ST),
        item_SK=torch.from_numpy(item_SK),
        clicked_SK=torch.from_numpy(clicked_SK & is_item_SK),
        negative_SK=torch.from_numpy(negative_SK & is_item_SK),
        weight_SK=torch.from_numpy(weight_SK),
    )


def lacks_in(examples: Iterable[SlateExample]) -> Counter[Lack]:
    """How many items lack a propensity, by reason; a correction was counted when its slate closed."""
    return lacks_of(item for example in examples if not example.correction for item in example.items)


def _teaches(example: SlateExample) -> bool:
    return any(item.clicked and _counts(item) for item in example.items) and any(_negatives(example))


def _counts(item: ShownItem) -> bool:
    """A propensity that was promised and is none makes its item worthless, here as well."""
    return lack_of(item) in (None, "not_logged")


def _negatives(example: SlateExample) -> list[bool]:
    """Shown, looked at as far as anybody knows, and not clicked."""
    is_known = any(item.seen is not None for item in example.items)
    return [_counts(item) and _is_negative(item, is_known=is_known) for item in example.items]


def _is_negative(item: ShownItem, *, is_known: bool) -> bool:
    return not (item.clicked or item.clicked_before) and (item.seen is True or not is_known)
