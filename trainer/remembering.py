"""Not forgetting: what holds a step to the weights that were accepted last, each way behind one interface.

Replay (trainer/replay.py) brings old sequences back as examples. A `Restraint` makes a step pay for moving away from
what was accepted: `Teacher` (trainer/teacher.py) in what is predicted, `Anchor` (trainer/anchor.py) in the weights
themselves. Dropout is the network's (`model.dropout`). Which of them work is a matter of settings; what they remember
is part of the checkpoint. Shapes: P positions, F rows that begin afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from model.losses import Positions
from model.optimiser import RowAdam
from model.sasrec import SASRec
from trainer.batch import Group


class Seen(NamedTuple):
    """What a step learns from, as restraints look at it."""

    positions: Positions
    """Every position with a target; those of replayed sequences stand last."""
    groups: Sequence[Group]
    """The sequences that they stand in."""
    replayed: Sequence[Group]
    """The last of these groups: the sequences that are learnt again."""


@runtime_checkable
class Restraint(Protocol):
    """One way to hold on to what was accepted."""

    name: str
    """Its tensors in a checkpoint begin with it."""

    def cost(self, network: SASRec, seen: Seen, *, rng: np.random.Generator) -> Tensor | None:
        """What is added to the loss; None where there is nothing to hold on to."""

    def accept(self, network: SASRec, optimiser: RowAdam, *, rows: int) -> None:
        """From now on steps are held to these weights; `rows` of the item table are in use."""

    def forget(self, rows_F: Int[np.ndarray, " F"]) -> None:
        """Rows that were given to other items: what was accepted says nothing about these."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All that it remembers; empty before anything was accepted."""

    def load_tensors(self, tensors: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Becomes what gave `tensors`, where the network is."""
