"""The approximate search beside the exact one: what it finds, what it never finds, and how it follows the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model import index
from model.catalogue import PADDING
from model.index import Index, index_of
from model.native.functions import kernels
from model.ranking import TopK, top_k

GROUPS, ROWS_PER_GROUP, UNITS = 20, 60, 12
ROWS = GROUPS * ROWS_PER_GROUP + 1
LISTS = 16


@pytest.fixture(autouse=True, params=[True, False], ids=["native", "torch"])
def _searches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(index, "collects_natively", lambda _: False)
    elif kernels() is None:
        pytest.skip("no native kernels: there is no C++ compiler, or SASREC_NATIVE is off")


@pytest.fixture
def table() -> Tensor:
    """Items in groups of their like, and nothing in the row of PADDING."""
    generator = torch.Generator().manual_seed(3)
    group_GD = torch.randn(GROUPS, UNITS, generator=generator)
    item_RD = group_GD.repeat_interleave(ROWS_PER_GROUP, dim=0)
    item_RD += 0.3 * torch.randn(item_RD.shape, generator=generator)
    return torch.cat((torch.zeros(1, UNITS), item_RD))


def indexed(item_RD: Tensor) -> Index:
    return index_of(item_RD, lists=LISTS, probes=5, rng=np.random.default_rng(1))


def users_of(item_RD: Tensor, count: int = 8) -> Tensor:
    """Users who like what some rows are like."""
    return item_RD[1 + 37 * torch.arange(count)]


def no_rows() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


def search(found: Index, hidden: Tensor, item_RD: Tensor, *, k: int = 10, probes: int = 5, **given: Tensor) -> TopK:
    nothing: dict[str, Tensor] = {
        "excluded_BE": torch.empty(len(hidden), 0, dtype=torch.int64),
        "live_R": torch.arange(len(item_RD)) != PADDING,
    }
    return dataclasses.replace(found, probes=probes).search(hidden, item_RD, k=k, **(nothing | given))


def exactly(hidden: Tensor, item_RD: Tensor, *, k: int = 10) -> TopK:
    none = torch.empty(len(hidden), 0, dtype=torch.int64)
    return top_k(hidden, item_RD, k=k, excluded_BE=none, live_R=torch.arange(len(item_RD)) != PADDING)


def recall(found: TopK, exact: TopK) -> float:
    hits = [len(set(mine) & set(best)) for mine, best in zip(found.row_BK.tolist(), exact.row_BK.tolist(), strict=True)]
    return sum(hits) / exact.row_BK.numel()


def test_looking_through_every_list_is_exact(table: Tensor) -> None:
    found = search(indexed(table), users_of(table), table, probes=LISTS)

    exact = exactly(users_of(table), table)
    assert found.row_BK.tolist() == exact.row_BK.tolist()
    torch.testing.assert_close(found.score_BK, exact.score_BK)


def test_a_few_lists_of_items_of_a_kind_hold_nearly_all_of_the_best(table: Tensor) -> None:
    found = search(indexed(table), users_of(table), table)

    assert recall(found, exactly(users_of(table), table)) >= 0.95


def test_what_is_found_is_scored_exactly_by_the_table_of_this_moment(table: Tensor) -> None:
    stale, now = indexed(table), 1.5 * table

    found = search(stale, users_of(table), now)

    expected = torch.einsum("bd,bkd->bk", users_of(table), now[found.row_BK])
    torch.testing.assert_close(found.score_BK, expected)


def test_excluded_dead_and_empty_rows_are_never_found_though_the_index_has_them(table: Tensor) -> None:
    best = exactly(users_of(table), table).row_BK
    live = torch.arange(ROWS) != PADDING
    live[best[:, 1]] = False

    found = search(indexed(table), users_of(table), table, excluded_BE=best[:, :1], live_R=live).row_BK

    for user in range(len(found)):
        assert not {PADDING, int(best[user, 0]), *best[:, 1].tolist()} & set(found[user].tolist())


def test_who_finds_too_few_in_the_lists_is_searched_for_in_the_whole_table(table: Tensor) -> None:
    live = torch.zeros(ROWS, dtype=torch.bool)
    live[5::ROWS_PER_GROUP] = True

    found = search(indexed(table), users_of(table), table, k=15, probes=1, live_R=live)

    exact = top_k(users_of(table), table, k=15, excluded_BE=torch.empty(8, 0, dtype=torch.int64), live_R=live)
    assert found.row_BK.tolist() == exact.row_BK.tolist()


def test_fewer_left_than_asked_for_are_all_found(table: Tensor) -> None:
    live = torch.zeros(ROWS, dtype=torch.bool)
    live[[7, 700]] = True

    found = search(indexed(table), users_of(table, 1), table, live_R=live).row_BK[0].tolist()

    assert sorted(found) == [PADDING] * 8 + [7, 700]


def test_rows_that_became_like_something_else_are_found_among_it(table: Tensor) -> None:
    before = indexed(table)
    changed = np.arange(1, 31)
    now = table.clone()
    now[1:31] = table[901:931] * 1.2

    stale = search(before, table[[905]], now, probes=1)
    after = before.followed(now, changed_X=changed, placed_W=no_rows())
    followed = search(after, table[[905]], now, probes=1)

    exact = exactly(table[[905]], now)
    assert recall(stale, exact) < recall(followed, exact)
    assert recall(followed, exact) >= 0.95


def test_following_leaves_the_index_before_as_it_was(table: Tensor) -> None:
    before = indexed(table)
    rows, lists = before.row_N.clone(), before.list_R.copy()

    before.followed(table.flip(0), changed_X=np.arange(1, ROWS), placed_W=no_rows())

    assert torch.equal(before.row_N, rows)
    assert np.array_equal(before.list_R, lists)
    assert not before.stale_R.any()


def test_new_rows_of_a_table_that_grew_are_found_at_once(table: Tensor) -> None:
    grown = torch.cat((table, 2 * users_of(table)))
    new = np.arange(ROWS, ROWS + 8)

    after = indexed(table).followed(grown, changed_X=new, placed_W=new)

    found = search(after, users_of(table), grown, probes=3).row_BK[:, 0]
    assert found.tolist() == exactly(users_of(table), grown).row_BK[:, 0].tolist()
    assert set(found.tolist()) <= set(new.tolist())


def test_a_row_that_another_item_got_is_filed_before_all_that_only_changed(
    table: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FILED_AT_ONCE", 4)
    now = table.clone()
    now[1_000] = 3 * table[1]

    after = indexed(table).followed(now, changed_X=np.arange(1, ROWS), placed_W=np.array([1_000]))

    assert search(after, table[[1]], now, probes=2).row_BK[0, 0] == 1_000


def test_however_many_rows_change_each_has_its_turn(table: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FILED_AT_ONCE", 100)
    following = indexed(table)
    now = table.flip(0).clone()
    now[PADDING] = 0.0

    following = following.followed(now, changed_X=np.arange(1, ROWS), placed_W=no_rows())
    for _ in range(11):
        assert following.stale_R.any()
        following = following.followed(now, changed_X=np.arange(1, 21), placed_W=no_rows())

    fresh = index.nearest(now[1:], following.centre_LD).numpy()
    assert (following.list_R[1:] == fresh).all() or following.stale_R.any()
    assert (following.list_R[21:] == fresh[20:]).all()


def test_no_more_lists_than_rows(table: Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        index_of(table, lists=ROWS, probes=5, rng=np.random.default_rng(1))
