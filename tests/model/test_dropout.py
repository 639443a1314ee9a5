"""Dropout from a generator that is passed in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.dropout import add_dropped, dropout, keep_mask

ONES = torch.ones(1_000, 1_000)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_as_many_units_are_dropped_as_was_asked_for(rate: float) -> None:
    mask = keep_mask(ONES, rate=rate, rng=np.random.default_rng(1))

    dropped = float((mask == 0).double().mean())
    assert dropped == pytest.approx(rate, abs=4 * (rate * (1 - rate) / mask.numel()) ** 0.5)
    assert float(mask.double().mean()) == pytest.approx(1.0, abs=0.02)


def test_neighbouring_units_are_dropped_independently() -> None:
    dropped = keep_mask(ONES, rate=0.5, rng=np.random.default_rng(1)).flatten() == 0

    for distance in (1, 2, 3, 4, 64):
        both = float((dropped[distance:] & dropped[:-distance]).double().mean())
        assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1e6) ** 0.5 * 1.5)


def test_the_same_generator_state_drops_the_same_units() -> None:
    first, second = (keep_mask(ONES, rate=0.3, rng=np.random.default_rng(5)) for _ in range(2))

    assert torch.equal(first, second)


def test_a_count_of_units_that_is_no_multiple_of_four_is_covered() -> None:
    assert keep_mask(torch.ones(3, 7), rate=0.5, rng=np.random.default_rng(1)).shape == (3, 7)


def test_nothing_is_dropped_without_a_generator_or_a_rate() -> None:
    assert dropout(ONES, rate=0.5, rng=None) is ONES
    assert dropout(ONES, rate=0.0, rng=np.random.default_rng(1)) is ONES
    assert torch.equal(add_dropped(ONES, ONES, rate=0.5, rng=None), 2 * ONES)


def test_the_sum_is_the_residual_and_the_dropped_branch() -> None:
    branch = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))

    together = add_dropped(ONES[:20, :30], branch, rate=0.5, rng=np.random.default_rng(2))

    torch.testing.assert_close(together, 1.0 + dropout(branch, rate=0.5, rng=np.random.default_rng(2)))
