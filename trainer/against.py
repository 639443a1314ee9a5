"""What a click is learnt against: the items drawn as negatives for a micro-batch, and the loss that a setting means.

Shapes: P positions with a target, K negatives, B sequences, T positions of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from model.catalogue import PADDING
from model.losses import LOSSES, Loss, cross_entropy, sampled_softmax
from model.negatives import Sampler, draw_for_each, in_batch
from trainer.batch import Group
from trainer.settings import TrainerSettings


def loss_of(settings: TrainerSettings, *, items: int) -> Loss:
    """What a catalogue of so many items is learnt by.

    BPR against the soft maximum S = ln(sum_j e^s_j) of its negatives is softmax cross-entropy by another name, for
    -ln sigmoid(s_i - S) = -ln(e^s_i / (e^s_i + sum_j e^s_j)): over drawn negatives, corrected for how likely each was
    drawn, or over all items where so many would be drawn.
    """
    is_softmax = settings.loss == "sampled_softmax" or (settings.loss, settings.bpr_against) == ("bpr", "soft_maximum")
    if not is_softmax:
        return LOSSES[settings.loss]
    is_whole = settings.negatives_from == "catalogue" and settings.negatives >= items
    return cross_entropy if is_whole else sampled_softmax


def negatives_of(
    settings: TrainerSettings,
    groups: Sequence[Group],
    *,
    target_P: Int[Tensor, " P"],
    sampler: Sampler,
    rng: np.random.Generator,
) -> Int[Tensor, " K"] | Int[Tensor, "P K"]:
    """Shared ones, or some for each position; positions in the order of the groups."""
    match settings.negatives_from:
        case "catalogue":
            negative = sampler.draw((settings.negatives,), rng)
        case "batch":
            negative = in_batch(target_P, most=settings.negatives, rng=rng)
        case "catalogue_for_each":
            own_BT, owner_P = _owned(groups)
            negative = draw_for_each(sampler, settings.negatives, owner_P=owner_P, own_BT=own_BT, rng=rng)
    return negative.to(target_P.device)


def _owned(groups: Sequence[Group]) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " P"]]:
    """Every item of every sequence, and which sequence owns each position that has a target."""
    width = max(group.row_BT.shape[1] for group in groups) + 1
    parts, owners, sequences = [], [], 0
    for group in groups:
        own_BT = torch.cat((group.row_BT, group.target_BT[:, -1:]), dim=1).numpy()
        parts.append(np.pad(own_BT, ((0, 0), (width - own_BT.shape[1], 0)), constant_values=PADDING))
        owners.append(np.nonzero(group.target_BT.numpy() != PADDING)[0] + sequences)
        sequences += len(own_BT)
    return np.concatenate(parts), np.concatenate(owners)
