"""Which loss a setting means, and which items a click is learnt against."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from model.catalogue import PADDING
from model.losses import LOSSES, Positions, bce, bpr, cross_entropy, gbce, sampled_softmax
from model.negatives import uniform
from model.settings import ModelSettings
from trainer.against import loss_of, negatives_of
from trainer.batch import Group, Stretch, collate
from trainer.learner import Learner
from trainer.settings import TrainerSettings
from trainer.step import Micro

Source = Literal["catalogue", "catalogue_for_each", "batch"]
SOURCES: tuple[Source, ...] = ("catalogue", "catalogue_for_each", "batch")
every_source = pytest.mark.parametrize("source", SOURCES)


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
    assert loss_of(TrainerSettings(loss="gbce"), items=10) is gbce


@pytest.mark.parametrize("source", ["catalogue_for_each", "batch"])
def test_only_negatives_of_the_whole_catalogue_can_be_all_of_it(source: Source) -> None:
    assert loss_of(TrainerSettings(negatives_from=source), items=10) is sampled_softmax


def groups() -> list[Group]:
    """Two users with three and five items out of twelve: 2 + 4 targets."""
    stretches = [Stretch(("1", "2", "3"), (1.0,) * 3), Stretch(("4", "5", "6", "7", "8"), (1.0,) * 5)]
    return collate(stretches, lambda items: np.array([int(item) for item in items]))


def drawn(source: Source, *, negatives: int, seed: int = 1) -> torch.Tensor:
    targets = torch.cat([group.target_BT[group.target_BT != PADDING] for group in groups()])
    settings = TrainerSettings(negatives=negatives, negatives_from=source)
    rng = np.random.default_rng(seed)
    return negatives_of(settings, groups(), target_P=targets, sampler=uniform(np.arange(1, 13)), rng=rng)


def test_shared_negatives_are_drawn_once() -> None:
    assert drawn("catalogue", negatives=7).shape == (7,)


def test_negatives_of_the_batch_are_what_others_chose() -> None:
    assert drawn("batch", negatives=100).sort().values.tolist() == [2, 3, 5, 6, 7, 8]
    assert drawn("batch", negatives=4).shape == (4,)


def test_negatives_for_each_are_none_of_the_user_s_own() -> None:
    negative_PK = drawn("catalogue_for_each", negatives=500)

    own = [{1, 2, 3}] * 2 + [{4, 5, 6, 7, 8}] * 4
    assert [set(range(1, 13)) - set(row.tolist()) for row in negative_PK] == own


@every_source
def test_the_same_generator_state_draws_the_same_negatives(source: Source) -> None:
    assert torch.equal(drawn(source, negatives=5), drawn(source, negatives=5))


@every_source
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_every_source_and_repeatably(
    loss: Literal["bpr", "bce", "gbce", "sampled_softmax", "cross_entropy"], source: Source
) -> None:
    settings = TrainerSettings(loss=loss, negatives=8, negatives_from=source, learning_rate=0.01)

    first, second = (ten_costs(settings) for _ in range(2))

    assert first == second
    assert np.mean(first[-3:]) < np.mean(first[:3])


def ten_costs(settings: TrainerSettings) -> list[float]:
    learner = Learner(ModelSettings(max_length=8, units=8), settings)
    learner.admit(str(row) for row in range(1, 13))
    learner.catalogue.count_clicks(np.arange(1, 13))
    return [learner.step(Micro(groups(), None)).loss for _ in range(10)]
