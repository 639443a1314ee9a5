"""Ranking metrics for one expected item."""

from __future__ import annotations

import math

import torch

from model.metrics import gains, hits, reciprocal_ranks

RANKS = torch.tensor([0, 1, 9, 10, 5_000])


def test_an_item_among_the_first_k_is_a_hit() -> None:
    assert hits(RANKS, k=10).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_gain_falls_with_the_logarithm_of_the_rank() -> None:
    expected = torch.tensor([1.0, 1 / math.log2(3), 1 / math.log2(11), 0.0, 0.0])

    torch.testing.assert_close(gains(RANKS, k=10), expected)


def test_the_reciprocal_rank_counts_from_one() -> None:
    torch.testing.assert_close(reciprocal_ranks(RANKS), torch.tensor([1.0, 0.5, 0.1, 1 / 11, 1 / 5_001]))
