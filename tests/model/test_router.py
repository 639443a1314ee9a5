"""Users stay with their recommender, and every recommender gets its share."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from model.router import Router, user_place

USERS = [f"user-{number}" for number in range(20_000)]
SHARES = {"sasrec": 0.8, "popular": 0.15, "acme": 0.05}
ADA = 0.08472980631730564


def test_every_recommender_gets_its_share_of_the_users() -> None:
    router = Router(SHARES)

    counted = Counter(router.choose(user_id) for user_id in USERS)

    for name, share in SHARES.items():
        assert abs(counted[name] / len(USERS) - share) < 4 * math.sqrt(share * (1 - share) / len(USERS))


def test_a_user_stays_where_the_hash_puts_them() -> None:
    """On every machine and for ever: these are fixed by the function's definition."""
    assert user_place("ada", salt=b"") == pytest.approx(ADA, abs=1e-12)
    assert [Router(SHARES).choose(user_id) for user_id in USERS] == [
        Router(SHARES).choose(user_id) for user_id in USERS
    ]


def test_growing_the_last_share_moves_only_those_whom_it_takes() -> None:
    before, after = Router({"ours": 0.9, "new": 0.1}), Router({"ours": 0.8, "new": 0.2})

    moved = {(before.choose(user_id), after.choose(user_id)) for user_id in USERS}

    assert moved == {("ours", "ours"), ("new", "new"), ("ours", "new")}


def test_another_salt_deals_anew() -> None:
    first, second = Router({"a": 0.5, "b": 0.5}, salt="1"), Router({"a": 0.5, "b": 0.5}, salt="2")

    same = sum(first.choose(user_id) == second.choose(user_id) for user_id in USERS)

    assert abs(same / len(USERS) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("shares", "reason"), [({"a": 0.5}, "add up to 0.5"), ({"a": 1.0, "b": 0.0}, "above 0"), ({}, "add up to 0")]
)
def test_shares_that_do_not_add_up_are_refused(shares: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Router(shares)
