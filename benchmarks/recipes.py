"""How each loss is learnt in `benchmarks.accuracy`: the product's own settings, written out."""

from __future__ import annotations

from typing import NamedTuple

from model.settings import ModelSettings
from trainer.settings import RetrainSettings, TrainerSettings


class Recipe(NamedTuple):
    """What is learnt, against what, and for how long."""

    model: ModelSettings
    trainer: TrainerSettings
    retrain: RetrainSettings


_MODEL = ModelSettings(max_length=200, units=64, blocks=2, heads=1, dropout=0.2, norm="pre")
_PASSES = RetrainSettings(epochs=100, batch_users=32, learning_rate=3e-3)
_SHARED = 256

RECIPES = {
    "cross_entropy": Recipe(_MODEL, TrainerSettings(loss="cross_entropy"), _PASSES),
    "bpr": Recipe(_MODEL, TrainerSettings(loss="bpr"), _PASSES),
    "sampled_softmax": Recipe(_MODEL, TrainerSettings(loss="sampled_softmax", negatives=1_024), _PASSES),
    "gbce": Recipe(_MODEL, TrainerSettings(loss="gbce", negatives=_SHARED), _PASSES),
    "bce": Recipe(
        _MODEL,
        TrainerSettings(loss="bce", negatives=1, negatives_from="catalogue_for_each"),
        _PASSES,
    ),
}
"""The first is the headline: every other one is held against it."""
