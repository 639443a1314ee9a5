"""Where the row of an item begins that nobody has clicked before.

At random it must be moved all the way from nowhere. Among the items that stood beside it in somebody's sequence it
begins near where it will end: users who click these are those who will click it. Shapes: D units, F rows that begin
afresh, N neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from model.catalogue import PADDING, Catalogue
from model.sasrec import SASRec

REACH = 2
"""Items before and after it in a sequence that count as neighbours."""
MOST_NEIGHBOURS = 16


def neighbours_of(new: Iterable[str], sequences: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """For each new item the known ones around it, at most `MOST_NEIGHBOURS`, in the order of the sequences."""
    found: dict[str, list[str]] = {item_id: [] for item_id in new}
    if not found:
        return {}
    for items in sequences:
        for place, item_id in enumerate(items):
            neighbours = found.get(item_id)
            if neighbours is not None and len(neighbours) < MOST_NEIGHBOURS:
                around = (*items[max(0, place - REACH) : place], *items[place + 1 : place + 1 + REACH])
                neighbours += (other for other in around if other not in found)
    return {item_id: neighbours[:MOST_NEIGHBOURS] for item_id, neighbours in found.items() if neighbours}


@torch.no_grad()
def warm_start(network: SASRec, catalogue: Catalogue, neighbours: Mapping[str, Sequence[str]]) -> None:
    """Adds the neighbours' mean to the random beginning of each new row."""
    for item_id, known in neighbours.items():
        rows = catalogue.rows_of(known)
        rows = rows[rows != PADDING]
        row = catalogue.row_of(item_id)
        if row != PADDING and len(rows):
            network.item_RD[row] += _mean(network, rows)


def _mean(network: SASRec, row_N: np.ndarray) -> Float[torch.Tensor, " D"]:
    mean_D: torch.Tensor = network.item_RD[torch.from_numpy(row_N).to(network.device)].mean(dim=0)
    return mean_D
