"""Negatives are drawn as often as they should be, never from rows without an item, and repeatably."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.catalogue import PADDING
from model.losses import LOSSES, Positions, sampled_softmax
from model.negatives import Sampler, by_popularity, draw_for_each, in_batch, uniform

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


def drawn_for_each(sampler: Sampler, own: list[list[int]], *, owner: list[int], count: int, seed: int = 1) -> Tensor:
    rng = np.random.default_rng(seed)
    return draw_for_each(sampler, count, owner_P=np.array(owner, dtype=np.int64), own_BT=np.array(own), rng=rng)


@every_sampler
def test_what_the_user_has_is_not_drawn_and_the_others_keep_their_proportions(sampler: Sampler) -> None:
    drawn = drawn_for_each(sampler, [[PADDING, 3], [2, 9]], owner=[0], count=DRAWS)[0]

    chance = sampler.log_q(rows=12).exp()
    chance[3] = 0.0
    chance /= chance.sum()
    share = drawn.bincount(minlength=12) / DRAWS
    assert ((share - chance).abs() <= 4 * (chance * (1 - chance) / DRAWS).sqrt() + 1e-4).all()


@every_sampler
@given(
    own=st.lists(
        st.lists(st.sampled_from([PADDING, *ROWS.tolist(), 11]), min_size=4, max_size=4), min_size=1, max_size=5
    ),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_negative_is_an_item_that_the_user_does_not_have_or_nothing(
    sampler: Sampler, own: list[list[int]], seed: int, data: st.DataObject
) -> None:
    owner = data.draw(st.lists(st.integers(0, len(own) - 1), max_size=6))

    drawn = drawn_for_each(sampler, own, owner=owner, count=3, seed=seed)

    assert drawn.shape == (len(owner), 3)
    for position, row in zip(owner, drawn.tolist(), strict=True):
        assert set(row) <= {PADDING, *ROWS.tolist()} - (set(own[position]) - {PADDING})
    assert torch.equal(drawn, drawn_for_each(sampler, own, owner=owner, count=3, seed=seed))


@every_sampler
def test_a_user_who_has_everything_has_no_negatives(sampler: Sampler) -> None:
    assert drawn_for_each(sampler, [ROWS.tolist()], owner=[0, 0], count=3).tolist() == [[PADDING] * 3] * 2


def test_of_a_large_batch_some_targets_are_taken_and_none_twice() -> None:
    targets = torch.arange(100, 150)

    drawn = in_batch(targets, most=20, rng=np.random.default_rng(1))

    assert len(set(drawn.tolist())) == 20
    assert set(drawn.tolist()) <= set(targets.tolist())
    assert torch.equal(in_batch(targets, most=50, rng=np.random.default_rng(1)), targets)


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
