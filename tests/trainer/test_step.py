"""Which loss a setting means."""

from __future__ import annotations

import pytest
import torch

from model.losses import Positions, bce, bpr, cross_entropy, sampled_softmax
from trainer.settings import TrainerSettings
from trainer.step import loss_of


def positions(*, negatives: int) -> Positions:
    generator = torch.Generator().manual_seed(1)
    return Positions(
        hidden_PD=torch.randn(5, 4, generator=generator),
        target_P=torch.tensor([1, 2, 3, 4, 5]),
        weight_P=torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0]),
        item_RD=torch.randn(12, 4, generator=generator),
        size=12,
        negative=torch.arange(6, 6 + negatives),
        log_q_R=torch.zeros(12),
    )


def test_one_negative_makes_the_soft_maximum_the_formula_of_bpr() -> None:
    one = positions(negatives=1)

    assert sampled_softmax(one).item() == pytest.approx(bpr(one).item(), rel=1e-6)


def test_bpr_against_the_soft_maximum_of_a_small_catalogue_is_not_sampled() -> None:
    settings = TrainerSettings(negatives=100)

    assert loss_of(settings, items=100) is cross_entropy
    assert loss_of(settings, items=101) is sampled_softmax


def test_a_setting_leads_back_to_the_mean_over_negatives() -> None:
    assert loss_of(TrainerSettings(bpr_against="mean"), items=10) is bpr
    assert loss_of(TrainerSettings(loss="bce"), items=10) is bce
