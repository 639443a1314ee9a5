"""Top-k and ranks beside a full sort, in one chunk and in many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model import ranking
from model.catalogue import PADDING
from model.native.functions import kernels
from model.ranking import rank_of, top_k

NONE_EXCLUDED = torch.empty(1, 0, dtype=torch.int64)


@pytest.fixture(params=[1, 7, 1 << 22], ids=["a score at a time", "small chunks", "one chunk"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CHUNK_SCORES", request.param)


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def _searches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(ranking, "collects_natively", lambda _: False)
    elif kernels() is None:
        pytest.skip("no native kernels: there is no C++ compiler, or SASREC_NATIVE is off")


def sorted_rows(scores: Tensor, excluded: Tensor, live: Tensor) -> list[list[int]]:
    """All that may be served, best first, ties by row."""
    served = []
    for user in range(len(scores)):
        gone = {PADDING, *excluded[user].tolist()}
        rows = [row for row in range(scores.shape[1]) if live[row] and row not in gone]
        served.append(sorted(rows, key=lambda row: -float(scores[user, row])))
    return served


@pytest.mark.usefixtures("_chunks", "_searches")
@pytest.mark.parametrize("k", [1, 3, 10, 50])
@pytest.mark.parametrize("users", [1, 4])
def test_the_best_items_are_those_of_a_full_sort(k: int, users: int) -> None:
    generator = torch.Generator().manual_seed(k)
    hidden, table = torch.randn(users, 5, generator=generator), torch.randn(30, 5, generator=generator)
    live = torch.rand(30, generator=generator) < 0.8
    excluded = torch.randint(0, 30, (users, 6), generator=generator)

    best = top_k(hidden, table, k=k, excluded_BE=excluded, live_R=live)

    for user, expected in enumerate(sorted_rows(hidden @ table.T, excluded, live)):
        filled = (expected + [PADDING] * k)[:k]
        assert best.row_BK[user].tolist() == filled
        assert torch.isfinite(best.score_BK[user]).tolist() == [row != PADDING for row in filled]


@pytest.mark.usefixtures("_chunks")
def test_ranks_count_the_items_that_score_at_least_as_high() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, table = torch.randn(6, 5, generator=generator), torch.randn(30, 5, generator=generator)
    live = torch.rand(30, generator=generator) < 0.8
    excluded = torch.randint(0, 30, (6, 4), generator=generator)
    targets = torch.randint(0, 30, (6,), generator=generator)

    ranks = rank_of(hidden, table, target_P=targets, excluded_PE=excluded, live_R=live)

    for user, order in enumerate(sorted_rows(hidden @ table.T, excluded, live)):
        target = int(targets[user])
        assert int(ranks[user]) == (order.index(target) if target in order else 30)


def test_ties_count_against_the_model() -> None:
    """A model that scores everything alike ranks every target last."""
    ranks = rank_of(
        torch.ones(1, 1),
        torch.ones(11, 1),
        target_P=torch.tensor([4]),
        excluded_PE=NONE_EXCLUDED,
        live_R=torch.ones(11, dtype=torch.bool),
    )

    assert ranks.tolist() == [9]


@pytest.mark.parametrize("target", [PADDING, 3, 5], ids=["unknown", "withdrawn", "excluded"])
def test_a_target_that_cannot_be_served_is_a_miss(target: int) -> None:
    live = torch.ones(11, dtype=torch.bool)
    live[3] = False

    ranks = rank_of(
        torch.ones(1, 1),
        torch.arange(11.0)[:, None],
        target_P=torch.tensor([target]),
        excluded_PE=torch.tensor([[5]]),
        live_R=live,
    )

    assert ranks.tolist() == [11]


@pytest.mark.usefixtures("_searches")
def test_excluding_everything_leaves_padding() -> None:
    best = top_k(
        torch.ones(1, 1),
        torch.ones(4, 1),
        k=2,
        excluded_BE=torch.tensor([[1, 2, 3]]),
        live_R=torch.ones(4, dtype=torch.bool),
    )

    assert best.row_BK.tolist() == [[PADDING, PADDING]]


@pytest.mark.usefixtures("_searches")
def test_no_users_are_answered_with_nothing() -> None:
    best = top_k(
        torch.ones(0, 1),
        torch.ones(4, 1),
        k=2,
        excluded_BE=NONE_EXCLUDED[:0],
        live_R=torch.ones(4, dtype=torch.bool),
    )

    assert best.row_BK.shape == (0, 2)


@pytest.mark.parametrize("users", [1, 5])
def test_both_searches_find_the_same_in_a_large_catalogue(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(users)
    hidden, table = torch.randn(users, 16, generator=generator), torch.randn(5_000, 16, generator=generator)
    excluded = torch.randint(0, 5_000, (users, 100), generator=generator)
    live = torch.rand(5_000, generator=generator) < 0.9

    found = top_k(hidden, table, k=60, excluded_BE=excluded, live_R=live)
    monkeypatch.setattr(ranking, "collects_natively", lambda _: False)
    expected = top_k(hidden, table, k=60, excluded_BE=excluded, live_R=live)

    assert torch.equal(found.row_BK, expected.row_BK)
    assert torch.allclose(found.score_BK, expected.score_BK, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_chunks", "_searches")
def test_of_equal_negative_scores_as_many_are_found_as_are_asked_for() -> None:
    best = top_k(
        torch.ones(2, 1),
        torch.full((300, 1), -2.5),
        k=7,
        excluded_BE=torch.tensor([[1, 2], [3, 3]]),
        live_R=torch.ones(300, dtype=torch.bool),
    )

    assert best.score_BK.tolist() == [[-2.5] * 7] * 2
    assert all(len(set(row)) == 7 for row in best.row_BK.tolist())


@given(seed=st.integers(0, 2**32), k=st.integers(1, 12))
def test_the_item_at_each_place_has_that_rank(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, table = torch.randn(3, 4, generator=generator), torch.randn(9, 4, generator=generator)
    excluded = torch.randint(0, 9, (3, 2), generator=generator)
    live = torch.rand(9, generator=generator) < 0.7

    best = top_k(hidden, table, k=k, excluded_BE=excluded, live_R=live)

    for place in range(k):
        rows = best.row_BK[:, place]
        ranks = rank_of(hidden, table, target_P=rows, excluded_PE=excluded, live_R=live)
        assert torch.equal(ranks, torch.where(rows == PADDING, 9, place))
