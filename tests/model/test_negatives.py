"""Negatives are drawn as often as they should be, never from rows without an item, and repeatably."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.catalogue import PADDING
from model.losses import LOSSES, Positions, sampled_softmax
from model.negatives import Sampler, by_popularity, uniform, without_own

ROWS = np.array([2, 3, 5, 9])
CLICKS = np.array([0, 3, 15, 80])
DRAWS = 200_000
SAMPLERS = {
    "uniform": uniform(ROWS),
    "popularity": by_popularity(ROWS, CLICKS, alpha=1.0),
    "flattened popularity": by_popularity(ROWS, CLICKS, alpha=0.5),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@every_sampler
def test_each_item_is_drawn_with_the_chance_that_is_stated(sampler: Sampler) -> None:
    drawn = sampler.draw((DRAWS,), np.random.default_rng(1)).bincount(minlength=12) / DRAWS

    chance = sampler.log_q(rows=12).exp()

    assert float(chance.sum()) == pytest.approx(1.0)
    assert ((drawn - chance).abs() <= 4 * (chance * (1 - chance) / DRAWS).sqrt()).all()


@every_sampler
def test_the_same_generator_state_draws_the_same_items(sampler: Sampler) -> None:
    first, second = (sampler.draw((3, 7), np.random.default_rng(5)) for _ in range(2))

    assert first.shape == (3, 7)
    assert torch.equal(first, second)


def test_popularity_to_the_zeroth_power_is_uniform() -> None:
    flat = by_popularity(ROWS, CLICKS, alpha=0.0)

    torch.testing.assert_close(flat.log_q(rows=12), uniform(ROWS).log_q(rows=12))


def test_an_item_that_nobody_clicked_is_drawn_too() -> None:
    assert float(SAMPLERS["popularity"].log_q(rows=12).exp()[2]) == pytest.approx(1 / (1 + 4 + 16 + 81))


def test_what_the_user_has_is_masked() -> None:
    negatives = torch.tensor([[1, 2, 3], [1, 2, 3]])
    own = torch.tensor([[PADDING, 2], [3, 1]])

    assert without_own(negatives, own).tolist() == [[1, PADDING, 3], [PADDING, 2, PADDING]]


def test_an_empty_catalogue_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="admit items first"):
        uniform(ROWS[:0])


@every_sampler
def test_the_correction_makes_every_sampler_estimate_the_same_loss(sampler: Sampler) -> None:
    """E[e^(s_j - ln q_j)] over draws is the sum over all items, whatever they are drawn by."""
    table = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    positions = Positions(
        hidden_PD=torch.randn(1, 4, generator=torch.Generator().manual_seed(2)),
        target_P=torch.tensor([7]),  # not drawn: no negative is masked
        weight_P=torch.ones(1),
        item_RD=table,
        size=12,
        negative=sampler.draw((DRAWS,), np.random.default_rng(3)),
        log_q_R=sampler.log_q(rows=12),
    )
    scores = positions.hidden_PD @ table.T
    expected = torch.logsumexp(scores[0, [7, *ROWS.tolist()]], dim=0) - scores[0, 7]

    assert float(sampled_softmax(positions)) == pytest.approx(float(expected), rel=0.02)


def test_targets_of_the_batch_serve_as_shared_negatives() -> None:
    targets = torch.tensor([2, 3, 5])
    positions = Positions(
        hidden_PD=torch.eye(3),
        target_P=targets,
        weight_P=torch.ones(3),
        item_RD=torch.arange(36.0).view(12, 3),
        size=12,
        negative=targets,
    )
    others = Positions(
        hidden_PD=torch.eye(3),
        target_P=targets,
        weight_P=torch.ones(3),
        item_RD=torch.arange(36.0).view(12, 3),
        size=12,
        negative=torch.tensor([[3, 5], [2, 5], [2, 3]]),
    )

    torch.testing.assert_close(LOSSES["bpr"](positions), LOSSES["bpr"](others))
