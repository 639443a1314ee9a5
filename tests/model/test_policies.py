"""The contract that every policy keeps, and proof by simulation that a logged propensity is the truth (I3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model import policies
from model.catalogue import PADDING
from model.noise import Generated, Seeded
from model.policies import (
    Eligible,
    Policy,
    Shortlist,
    Slate,
    eligible_without,
    greedy,
    mixture,
    repeated,
    softmax,
    stacked,
    uniform,
)
from model.router import Router, of_the_surface

POLICIES = {
    "greedy": greedy(),
    "softmax": softmax(0.5),
    "uniform": uniform(),
    "mixture": mixture(temperature=0.5, exploration_slots=2),
    "greedy with exploration": mixture(temperature=0.0, exploration_slots=1),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)

ONE_CATALOGUE = np.arange(1, 31)
DRAWS = 1_000_000
CHUNK = 240_000
SOME = 60_000
BLOCK = 20_000
"""Draws at once: what fits into the processor's cache takes half the time."""


def all_of(scores: list[float], *, candidates: int | None = None) -> Shortlist:
    """Rows 1.. with these scores, the first of them as candidates."""
    row_N = np.arange(1, len(scores) + 1)
    nothing = np.empty(0, dtype=np.int64)
    return Shortlist(
        row_N[:candidates], np.array(scores[:candidates], dtype=np.float64), Eligible(row_N=row_N, excluded_X=nothing)
    )


class Case(NamedTuple):
    """A world small enough that a million draws show any error."""

    what: str
    policy: Policy
    shortlist: Shortlist
    slate_size: int


SCORES = [2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0]
CASES = [
    Case("softmax", softmax(1.0), all_of(SCORES), 3),
    Case("hot softmax", softmax(10.0), all_of(SCORES), 3),
    Case("cold softmax", softmax(0.25), all_of([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), 3),
    Case("one slot explores", mixture(temperature=1.0, exploration_slots=1), all_of(SCORES), 4),
    Case("half of the slots explore", mixture(temperature=0.5, exploration_slots=2), all_of(SCORES), 4),
    Case("greedy with exploration", mixture(temperature=0.0, exploration_slots=2), all_of(SCORES), 4),
    Case("every slot explores", uniform(), all_of(SCORES), 3),
    Case("more exploration than slots", mixture(temperature=1.0, exploration_slots=9), all_of(SCORES), 3),
    Case("few candidates", mixture(temperature=1.0, exploration_slots=1), all_of(SCORES, candidates=4), 3),
    Case("fewer candidates than slots", mixture(temperature=1.0, exploration_slots=1), all_of(SCORES, candidates=2), 5),
    Case("no candidates", softmax(1.0), all_of(SCORES, candidates=0), 3),
    Case("ties", mixture(temperature=1.0, exploration_slots=1), all_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), 3),
    Case("greedy ties", mixture(temperature=0.0, exploration_slots=1), all_of([1.0] * 6), 3),
    Case(
        "some scores of -inf",
        mixture(temperature=1.0, exploration_slots=1),
        all_of([1.0, -math.inf, 0.5, -math.inf, 0.0, -1.0, -math.inf]),
        4,
    ),
    Case("nearly all -inf", softmax(1.0), all_of([1.0, *[-math.inf] * 6]), 3),
    Case("as many eligible as slots", mixture(temperature=1.0, exploration_slots=2), all_of(SCORES[:6]), 6),
    Case("fewer eligible than slots", mixture(temperature=1.0, exploration_slots=2), all_of(SCORES[:6]), 9),
    Case(
        "excluded rows among the rows",
        mixture(temperature=1.0, exploration_slots=1),
        Shortlist(
            np.array([2, 4, 6]),
            np.array([1.0, 0.0, -1.0]),
            Eligible(row_N=np.arange(1, 11), excluded_X=np.array([1, 3, 7])),
        ),
        3,
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])


class Moments(NamedTuple):
    """Per row: mean over draws of a value given to served items, and its standard error."""

    mean_R: np.ndarray
    error_R: np.ndarray


def simulate(case: Case, value_of: str = "propensity", draws: int = DRAWS) -> Moments:
    """The mean of `1{served} / p`, by default with the logged p."""
    rows = int(case.shortlist.eligible.row_N.max()) + 1
    first, second = np.zeros(rows), np.zeros(rows)
    rng = np.random.default_rng(20_261_123)
    for _ in range(draws // BLOCK):
        slate = case.policy.draw_many(case.shortlist, slate_size=case.slate_size, count=BLOCK, rng=rng)
        inverse = 1.0 / WAYS[value_of](case, slate).ravel()
        first += np.bincount(slate.row_K.ravel(), weights=inverse, minlength=rows)
        second += np.bincount(slate.row_K.ravel(), weights=inverse**2, minlength=rows)
    mean = first / draws
    return Moments(mean, np.sqrt(np.maximum(second / draws - mean**2, 0.0) / draws))


def logged(case: Case, slate: Slate) -> np.ndarray:
    return slate.propensity_K


def of_its_own_source(case: Case, slate: Slate) -> np.ndarray:
    """Wrong: an explored item could have been exploited, an exploited one explored."""
    chance = exploration_chance(case)
    exploit = (slate.propensity_K - chance) / (1.0 - chance)
    return np.where(slate.explored_K, chance, exploit)


def with_replacement(case: Case, slate: Slate) -> np.ndarray:
    """Wrong: `1 - (1 - pi)^K` of a softmax."""
    score_R = np.full(int(case.shortlist.row_C.max()) + 1, -np.inf)
    score_R[case.shortlist.row_C] = case.shortlist.score_C / case.policy.temperature
    share_R = np.exp(score_R) / np.exp(score_R).sum()
    wrong: np.ndarray = 1.0 - (1.0 - share_R[slate.row_K]) ** case.slate_size
    return wrong


WAYS = {"propensity": logged, "own source": of_its_own_source, "with replacement": with_replacement}


def exploration_chance(case: Case) -> float:
    exploited = case.slate_size - case.policy.exploration_slots
    return case.policy.exploration_slots / (case.shortlist.eligible.count - exploited)


def servable(case: Case) -> np.ndarray:
    """Rows that the policy can serve at all: without exploration, only candidates with a score."""
    eligible = np.setdiff1d(case.shortlist.eligible.row_N, case.shortlist.eligible.excluded_X)
    finite = case.shortlist.row_C[np.isfinite(case.shortlist.score_C)]
    explores = case.policy.exploration_slots > 0 or len(finite) < case.slate_size
    return eligible if explores else finite


@every_case
def test_served_over_propensity_is_one_for_every_item_in_a_million_draws(case: Case) -> None:
    moments = simulate(case)

    rows = servable(case)
    assert (np.abs(moments.mean_R[rows] - 1.0) <= 4.0 * moments.error_R[rows] + 1e-12).all()
    assert not np.delete(moments.mean_R, rows).any()


@every_case
def test_propensities_of_all_items_add_up_to_the_slots(case: Case) -> None:
    """Served or not: the sum over the catalogue is K in expectation, in every draw alike where nothing is random."""
    slots = min(case.slate_size, case.shortlist.eligible.count)
    everything = np.setdiff1d(case.shortlist.eligible.row_N, case.shortlist.eligible.excluded_X)

    drawn = case.policy.draw_batch(
        repeated(case.shortlist, SOME),
        size_B=np.full(SOME, case.slate_size),
        noise=Generated(np.random.default_rng(1), SOME),
    )

    sum_S = drawn.propensity_of(np.broadcast_to(everything, (SOME, len(everything)))).sum(axis=1)
    assert float(sum_S.mean()) == pytest.approx(slots, abs=4.0 * float(sum_S.std()) / math.sqrt(SOME) + 1e-9)
    served = drawn.propensity_of(drawn.slate.row_K)
    assert np.array_equal(served, drawn.slate.propensity_K)


@pytest.mark.parametrize("what", ["one slot explores", "excluded rows among the rows"])
def test_drawing_until_enough_fit_is_as_exact_as_sorting_everything(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "DENSE", 0)

    test_served_over_propensity_is_one_for_every_item_in_a_million_draws(next(c for c in CASES if c.what == what))


def test_seeds_in_a_row_draw_as_well_as_a_generator() -> None:
    """What production draws with, on the worst seeds there are: 0, 1, 2 ..."""
    case = Case("half of the slots explore", mixture(temperature=0.5, exploration_slots=2), all_of(SCORES), 4)
    first, second = np.zeros(9), np.zeros(9)
    many = repeated(case.shortlist, BLOCK)
    for start in range(0, DRAWS, BLOCK):
        noise = Seeded(np.arange(start, start + BLOCK, dtype=np.uint64))
        slate = case.policy.draw_batch(many, size_B=np.full(BLOCK, case.slate_size), noise=noise).slate
        inverse = 1.0 / slate.propensity_K.ravel()
        first += np.bincount(slate.row_K.ravel(), weights=inverse, minlength=9)
        second += np.bincount(slate.row_K.ravel(), weights=inverse**2, minlength=9)
    mean = first / DRAWS

    error = np.sqrt((second / DRAWS - mean**2) / DRAWS)
    assert (np.abs(mean[1:] - 1.0) <= 4.0 * error[1:]).all()


def test_an_ab_split_of_two_policies_is_exact_by_the_balance_heuristic() -> None:
    """Users by a stable hash to one of two policies with other scores; every item is served 1/p times on the mean."""
    router = Router({"ours": 0.7, "theirs": 0.3}, salt="spring")
    is_theirs = np.array([router.choose(f"user-{number}") == "theirs" for number in range(BLOCK)])
    worlds = (
        (mixture(temperature=0.5, exploration_slots=1), repeated(all_of(SCORES), BLOCK)),
        (greedy(), repeated(all_of(SCORES[::-1], candidates=5), BLOCK)),
    )
    first, second = np.zeros(9), np.zeros(9)
    rng = np.random.default_rng(1)
    for _ in range(DRAWS // BLOCK):
        noise = Generated(rng, BLOCK)
        drawn = [policy.draw_batch(many, size_B=np.full(BLOCK, 3), noise=noise) for policy, many in worlds]
        row_SK = np.where(is_theirs[:, None], drawn[1].slate.row_K, drawn[0].slate.row_K)
        known = np.stack([one.propensity_of(row_SK) for one in drawn])
        inverse = 1.0 / of_the_surface(np.array([1.0 - is_theirs.mean(), is_theirs.mean()]), known).ravel()
        first += np.bincount(row_SK.ravel(), weights=inverse, minlength=9)
        second += np.bincount(row_SK.ravel(), weights=inverse**2, minlength=9)
    mean = first / DRAWS

    error = np.sqrt((second / DRAWS - mean**2) / DRAWS)
    assert (np.abs(mean[1:] - 1.0) <= 4.0 * error[1:]).all()
    assert is_theirs.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / BLOCK))


@pytest.mark.parametrize(
    ("what", "wrong"), [("half of the slots explore", "own source"), ("softmax", "with replacement")]
)
def test_the_simulation_notices_wrong_propensities(what: str, wrong: str) -> None:
    case = next(case for case in CASES if case.what == what)

    moments = simulate(case, wrong, draws=CHUNK)

    rows = servable(case)
    assert (np.abs(moments.mean_R[rows] - 1.0) > 8.0 * moments.error_R[rows]).any()


@st.composite
def shortlists(draw: st.DrawFn) -> Shortlist:
    """Any live catalogue, exclusions and candidates, with padding and -inf at the end as the search gives them."""
    row_N = np.array(sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=20))))
    live_R = np.zeros(31, dtype=np.bool_)
    live_R[row_N] = True
    excluded = np.array(draw(st.lists(st.integers(0, 30), max_size=12)), dtype=np.int64)
    eligible = eligible_without(excluded, row_N=row_N, live_R=live_R)
    servable_rows = np.setdiff1d(row_N, excluded)
    candidates = draw(st.integers(0, len(servable_rows)))
    padded = draw(st.integers(0, 3))
    row_C = np.concatenate((servable_rows[:candidates], np.full(padded, PADDING)))
    finite = st.floats(-20, 20, width=32)
    score_C = draw(arrays(np.float32, candidates, elements=finite))
    return Shortlist(row_C, np.append(score_C, np.full(padded, -np.inf, dtype=np.float32)), eligible)


@st.composite
def shortlists_of_one_catalogue(draw: st.DrawFn) -> Shortlist:
    """As `shortlists`, of rows that all users share."""
    excluded_X = np.array(sorted(draw(st.sets(st.integers(1, 30), max_size=15))), dtype=np.int64)
    eligible = Eligible(row_N=ONE_CATALOGUE, excluded_X=excluded_X)
    servable_rows = np.setdiff1d(ONE_CATALOGUE, excluded_X)
    row_C = servable_rows[: draw(st.integers(0, 15))]
    score_C = draw(arrays(np.float64, len(row_C), elements=st.floats(-5, 5) | st.just(-math.inf)))
    return Shortlist(row_C, score_C, eligible)


@every_policy
@settings(max_examples=50)
@given(shortlist=shortlists(), slate_size=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_a_slate_holds_distinct_eligible_items_with_true_looking_propensities(
    policy: Policy, shortlist: Shortlist, slate_size: int, seed: int
) -> None:
    slate = policy.draw(shortlist, slate_size=slate_size, rng=np.random.default_rng(seed))

    eligible = np.setdiff1d(shortlist.eligible.row_N, shortlist.eligible.excluded_X)
    assert shortlist.eligible.count == len(eligible)
    assert len(slate.row_K) == min(slate_size, len(eligible)) == len(set(slate.row_K.tolist()))
    assert np.isin(slate.row_K, eligible).all()
    assert ((slate.propensity_K > 0) & (slate.propensity_K <= 1)).all()
    known = dict(zip(shortlist.row_C.tolist(), shortlist.score_C.tolist(), strict=True))
    expected = [known.get(row, math.nan) for row in slate.row_K.tolist()]
    assert np.array_equal(slate.score_K, np.array(expected), equal_nan=True)
    assert np.isin(slate.row_K[~slate.explored_K], shortlist.row_C).all()


@every_policy
def test_the_same_seed_draws_the_same_slate(policy: Policy) -> None:
    first, second = (
        policy.draw(all_of(SCORES, candidates=5), slate_size=4, rng=np.random.default_rng(9)) for _ in range(2)
    )

    assert all(np.array_equal(*values, equal_nan=True) for values in zip(first, second, strict=True))


@every_policy
@settings(max_examples=30)
@given(drawn=st.lists(st.tuples(shortlists_of_one_catalogue(), st.integers(0, 12)), min_size=1, max_size=5))
def test_a_seed_draws_the_same_slate_alone_and_in_company(policy: Policy, drawn: list[tuple[Shortlist, int]]) -> None:
    together = [shortlist for shortlist, _ in drawn]
    size_B = np.array([size for _, size in drawn])
    seed_B = np.arange(len(drawn), dtype=np.uint64) * np.uint64(77)

    batch = policy.draw_batch(stacked(together), size_B=size_B, noise=Seeded(seed_B)).slate

    for user, shortlist in enumerate(together):
        one = slice(user, user + 1)
        alone = policy.draw_batch(stacked([shortlist]), size_B=size_B[one], noise=Seeded(seed_B[one])).slate
        slots = alone.row_K.shape[1]
        for mine, ours in zip(alone, batch, strict=True):
            assert np.array_equal(mine[0], ours[user, :slots], equal_nan=True)
        assert (batch.row_K[user, slots:] == PADDING).all()
        assert (batch.row_K[user, :slots] != PADDING).all()


@every_policy
def test_when_everything_is_served_every_propensity_is_one(policy: Policy) -> None:
    slate = policy.draw(all_of(SCORES), slate_size=20, rng=np.random.default_rng(1))

    assert sorted(slate.row_K.tolist()) == list(range(1, 9))
    assert slate.propensity_K.tolist() == [1.0] * 8


@every_policy
def test_nothing_eligible_gives_an_empty_slate(policy: Policy) -> None:
    nothing = np.empty(0, dtype=np.int64)
    empty = Shortlist(nothing, np.empty(0), Eligible(row_N=nothing, excluded_X=nothing))

    assert len(policy.draw(empty, slate_size=5, rng=np.random.default_rng(1)).row_K) == 0


def test_greedy_serves_the_best_in_order_and_for_sure() -> None:
    slate = greedy().draw(all_of(SCORES), slate_size=3, rng=np.random.default_rng(1))

    assert slate.row_K.tolist() == [1, 2, 3]
    assert slate.propensity_K.tolist() == [1.0, 1.0, 1.0]
    assert not slate.explored_K.any()


def test_a_very_low_temperature_is_greedy_without_overflow() -> None:
    slate = softmax(1e-300).draw(all_of([3e38, 1.0, 0.0, -3e38]), slate_size=2, rng=np.random.default_rng(1))

    assert slate.row_K.tolist() == [1, 2]


def test_uniform_gives_every_item_the_share_of_slots() -> None:
    slate = uniform().draw(all_of(SCORES), slate_size=2, rng=np.random.default_rng(1))

    assert slate.propensity_K.tolist() == pytest.approx([2 / 8, 2 / 8])
    assert slate.explored_K.all()


def test_explored_items_stand_in_every_slot_alike() -> None:
    policy = mixture(temperature=1.0, exploration_slots=1)

    slate = policy.draw_many(all_of(SCORES), slate_size=4, count=CHUNK, rng=np.random.default_rng(1))

    share = slate.explored_K.mean(axis=0)
    assert slate.explored_K.sum(axis=1).tolist() == [1] * CHUNK
    assert (np.abs(share - 0.25) <= 4.0 * math.sqrt(0.25 * 0.75 / CHUNK)).all()


def test_exploited_items_stand_in_the_order_of_a_softmax_draw() -> None:
    """The first item of a Plackett-Luce draw is the softmax itself."""
    slate = softmax(1.0).draw_many(all_of(SCORES), slate_size=3, count=CHUNK, rng=np.random.default_rng(1))

    first = np.bincount(slate.row_K[:, 0], minlength=9)[1:] / CHUNK
    share = np.exp(SCORES) / np.exp(SCORES).sum()
    assert (np.abs(first - share) <= 4.0 * np.sqrt(share * (1 - share) / CHUNK)).all()


def test_the_live_check_of_propensities_has_mean_one() -> None:
    """docs/propensities.md section 5: the mean of K / (N p) over served slots, as the scoring worker reports it."""
    case = CASES[4]

    slate = case.policy.draw_many(case.shortlist, slate_size=case.slate_size, count=CHUNK, rng=np.random.default_rng(1))

    ratio = case.slate_size / (case.shortlist.eligible.count * slate.propensity_K)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4.0 * float(ratio.mean(axis=1).std()) / math.sqrt(CHUNK))


def test_exploration_that_must_not_fill_leaves_the_slate_shorter_and_exact() -> None:
    policy = Policy(temperature=1.0, exploration_slots=1, fills=False)
    case = Case("two candidates for four slots", policy, all_of(SCORES, candidates=2), 4)

    slate = policy.draw(case.shortlist, slate_size=4, rng=np.random.default_rng(1))
    moments = simulate(case, draws=CHUNK)

    assert len(slate.row_K) == 3
    assert (np.abs(moments.mean_R[1:] - 1.0) <= 4.0 * moments.error_R[1:] + 1e-12).all()


def test_exclusions_may_repeat_be_unknown_and_be_most_of_the_catalogue() -> None:
    row_N = np.arange(1, 9)
    live_R = np.ones(12, dtype=np.bool_)
    live_R[[PADDING, 9, 10, 11]] = False

    eligible = eligible_without(np.array([PADDING, 1, 1, 2, 3, 4, 5, 6, 11]), row_N=row_N, live_R=live_R)

    assert eligible.count == 2
    everything = uniform().draw(Shortlist(row_N[:0], np.empty(0), eligible), slate_size=9, rng=np.random.default_rng(1))
    assert set(everything.row_K.tolist()) == {7, 8}
