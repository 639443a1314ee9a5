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


_LONGEST = 1_800.0
"""Seconds: half an hour by the clock, unless `--minutes` or `--cpu-minutes` says otherwise."""
_PAPERS = ModelSettings(max_length=200, units=64, blocks=2, heads=1, dropout=0.2, norm="pre")
_WIDE = ModelSettings(max_length=200, units=128, blocks=2, heads=2, dropout=0.3, norm="pre")
_PASSES = RetrainSettings(epochs=200, max_seconds=_LONGEST, batch_users=32, learning_rate=3e-3)
_WIDE_PASSES = RetrainSettings(epochs=200, max_seconds=_LONGEST, batch_users=32, learning_rate=2e-3)

RECIPES = {
    "bpr": Recipe(_WIDE, TrainerSettings(loss="bpr", softmax_products="bfloat16"), _WIDE_PASSES),
    "cross_entropy": Recipe(_WIDE, TrainerSettings(loss="cross_entropy", softmax_products="bfloat16"), _WIDE_PASSES),
    "sampled_softmax": Recipe(_PAPERS, TrainerSettings(loss="sampled_softmax", negatives=1_024), _PASSES),
    "gbce": Recipe(_PAPERS, TrainerSettings(loss="gbce", negatives=256), _PASSES),
    "bce": Recipe(_WIDE, TrainerSettings(loss="bce", negatives=1, negatives_from="catalogue_for_each"), _WIDE_PASSES),
}
