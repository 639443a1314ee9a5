"""From scores to a slate, with the exact propensity of every item in it; docs/propensities.md section 3.

    phi_i = s_i / T for the candidates C;  G_i = phi_i + Gumbel(0, 1);  exploit: the K - m largest G
    explore: m items, uniformly without replacement, from everything eligible outside the exploit set; in random slots
    kappa = the (K - m + 1)-th largest G for an item of the exploit set, else the (K - m)-th
    q_i = 1 - exp(-exp(phi_i - kappa)) for i in C, else 0;  r = m / (N - (K - m));  p_i = q_i + (1 - q_i) r

Given all other draws, q_i is the chance that i is among the exploited (Kool et al. 2019), so `E[1{i served} / p_i] = 1`
for every item that can be served at all. T = 0 is greedy. Where fewer than K items are eligible, the slate holds all of
them; where fewer than K - m candidates have a finite score, exploration fills the slots that they leave.

Shapes: S independent slates for the same user, K slots, C candidates, N eligible items, X excluded items, M explored.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

GREEDY_BELOW = 1e-6
"""Temperatures up to this are taken as zero: the noise would drown in the rounding of scores so much larger."""
EVERY_SLOT = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Eligible:
    """What may be served to a user: `row_N` without `excluded_X`, without ever writing it down."""

    row_N: Int[np.ndarray, " N"]
    """Distinct rows, shared by all users."""
    excluded_X: Int[np.ndarray, " X"]
    """Distinct rows, each one of `row_N`; at most half of them."""

    @property
    def count(self) -> int:
        """How many may be served."""
        return len(self.row_N) - len(self.excluded_X)

    def draw(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, " S"]:
        """`count` independent rows, each uniform over what may be served."""
        row_S = self.row_N[rng.integers(0, len(self.row_N), size=count)]
        while (again_S := (row_S[:, None] == self.excluded_X).any(axis=1)).any():
            row_S[again_S] = self.row_N[rng.integers(0, len(self.row_N), size=int(again_S.sum()))]
        return row_S


class Shortlist(NamedTuple):
    """What a policy chooses from."""

    row_C: Int[np.ndarray, " C"]
    """Candidates, distinct, each eligible: the best of the search. PADDING and scores of -inf may stand at the end."""
    score_C: Float[np.ndarray, " C"]
    eligible: Eligible


class Slate(NamedTuple):
    """Served items in slot order, for one draw [K] or for many [S, K]."""

    row_K: Int[np.ndarray, "*S K"]
    score_K: Float[np.ndarray, "*S K"]
    """Before noise; NaN for an explored item that was no candidate."""
    explored_K: Bool[np.ndarray, "*S K"]
    propensity_K: Float[np.ndarray, "*S K"]
    """In (0, 1], float64."""


class _Part(NamedTuple):
    """The exploited or the explored items of S slates, each with `phi - kappa`."""

    row_SE: Int[np.ndarray, "S E"]
    score_SE: Float[np.ndarray, "S E"]
    margin_SE: Float[np.ndarray, "S E"]


class _Noisy(NamedTuple):
    """Which candidates are exploited, best first, and the thresholds for those inside and outside."""

    index_SE: Int[np.ndarray, "S E"]
    kappa_in_S1: Float[np.ndarray, "S 1"]
    kappa_out_S1: Float[np.ndarray, "S 1"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A way to draw slates: all that a propensity follows from, besides scores and what is eligible."""

    temperature: float
    exploration_slots: int

    def draw(self, shortlist: Shortlist, *, slate_size: int, rng: np.random.Generator) -> Slate:
        """One slate, of fewer than `slate_size` items where fewer are eligible. Its cost follows the candidates."""
        return Slate(*(values[0] for values in self.draw_many(shortlist, slate_size=slate_size, count=1, rng=rng)))

    def draw_many(self, shortlist: Shortlist, *, slate_size: int, count: int, rng: np.random.Generator) -> Slate:
        """`count` independent slates for the same user, with a leading axis."""
        eligible = shortlist.eligible.count
        served = min(slate_size, eligible)
        row_C, score_C = _finite(shortlist)
        exploited = min(max(0, served - self.exploration_slots), len(row_C))
        phi_C = self._scaled(score_C)
        noisy = self._perturb(phi_C, exploited, count, rng)
        row_SE = row_C[noisy.index_SE]
        exploit = _Part(row_SE, score_C[noisy.index_SE], phi_C[noisy.index_SE] - noisy.kappa_in_S1)
        row_SM = _explore(shortlist.eligible, row_SE, served - exploited, rng)
        candidate_SM = _find(row_SM, row_C)
        margin_SM = _pick(phi_C, candidate_SM, -np.inf) - noisy.kappa_out_S1
        explore = _Part(row_SM, _pick(score_C, candidate_SM, np.nan), margin_SM)
        return _join(exploit, explore, chance=(served - exploited) / max(1, eligible - exploited), rng=rng)

    def _scaled(self, score_C: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
        return score_C / self.temperature if self.temperature > GREEDY_BELOW else score_C

    def _perturb(self, phi_C: Float[np.ndarray, " C"], exploited: int, count: int, rng: np.random.Generator) -> _Noisy:
        if self.temperature > GREEDY_BELOW:
            # A Gumbel variate is minus the logarithm of an exponential one.
            return _largest(phi_C - np.log(rng.standard_exponential((count, len(phi_C)))), exploited)
        index_SE = np.broadcast_to(np.argsort(-phi_C, kind="stable")[:exploited], (count, exploited))
        return _Noisy(index_SE, np.full((count, 1), -np.inf), np.full((count, 1), np.inf))


def greedy() -> Policy:
    """The best scores, always; ties go to the earlier candidate."""
    return Policy(temperature=0.0, exploration_slots=0)


def softmax(temperature: float) -> Policy:
    """Without replacement in proportion to `exp(s / T)` (Plackett-Luce), among the candidates."""
    return Policy(temperature=temperature, exploration_slots=0)


def uniform() -> Policy:
    """Every eligible item with the same chance."""
    return Policy(temperature=0.0, exploration_slots=EVERY_SLOT)


def mixture(*, temperature: float, exploration_slots: int) -> Policy:
    """Softmax (greedy at T = 0) with some slots filled uniformly from everything eligible."""
    return Policy(temperature=temperature, exploration_slots=exploration_slots)


def eligible_without(
    excluded_rows: Int[np.ndarray, " X"], *, row_N: Int[np.ndarray, " N"], live_R: Bool[np.ndarray, " R"]
) -> Eligible:
    """All of `row_N` (the rows that `live_R` marks) but the excluded ones, which may repeat or not be live."""
    excluded_X = np.unique(excluded_rows)
    excluded_X = excluded_X[live_R[excluded_X]]
    if 2 * len(excluded_X) <= len(row_N):
        return Eligible(row_N=row_N, excluded_X=excluded_X)
    return Eligible(row_N=np.setdiff1d(row_N, excluded_X), excluded_X=excluded_X[:0])


def _finite(shortlist: Shortlist) -> tuple[Int[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    finite_C = np.isfinite(shortlist.score_C)
    return shortlist.row_C[finite_C], shortlist.score_C[finite_C].astype(np.float64)


def _largest(noisy_SC: Float[np.ndarray, "S C"], exploited: int) -> _Noisy:
    """The `exploited` largest, in falling order; the thresholds are the next one and the last of them."""
    draws, candidates = noisy_SC.shape
    draw_S1 = np.arange(draws)[:, None]
    wanted = min(exploited + 1, candidates)
    top_SF = noisy_SC.argpartition(candidates - wanted, axis=1)[:, candidates - wanted :] if wanted else draw_S1[:, :0]
    top_SF = top_SF[draw_S1, noisy_SC[draw_S1, top_SF].argsort(axis=1)[:, ::-1]]
    value_SF = noisy_SC[draw_S1, top_SF]
    inside_S1 = value_SF[:, exploited:] if exploited < candidates else np.full((draws, 1), -np.inf)
    outside_S1 = value_SF[:, exploited - 1 : exploited] if exploited else np.full((draws, 1), np.inf)
    return _Noisy(top_SF[:, :exploited], inside_S1, outside_S1)


def _explore(
    eligible: Eligible, taken_SE: Int[np.ndarray, "S E"], explored: int, rng: np.random.Generator
) -> Int[np.ndarray, "S M"]:
    """Rows drawn one after the other from what is eligible and neither exploited nor drawn before."""
    for _ in range(explored):
        row_S = eligible.draw(len(taken_SE), rng)
        again_S = (row_S[:, None] == taken_SE).any(axis=1)
        while again_S.any():
            row_S[again_S] = eligible.draw(int(again_S.sum()), rng)
            again_S = (row_S[:, None] == taken_SE).any(axis=1)
        taken_SE = np.concatenate((taken_SE, row_S[:, None]), axis=1)
    return taken_SE[:, taken_SE.shape[1] - explored :]


def _find(row_SM: Int[np.ndarray, "S M"], row_C: Int[np.ndarray, " C"]) -> Int[np.ndarray, "S M"]:
    """Where each row stands among the candidates, -1 if nowhere."""
    if not row_SM.size or not len(row_C):
        return np.full_like(row_SM, -1)
    same_SMC = row_SM[:, :, None] == row_C
    return np.where(same_SMC.any(axis=2), same_SMC.argmax(axis=2), -1)


def _pick(
    value_C: Float[np.ndarray, " C"], index_SM: Int[np.ndarray, "S M"], absent: float
) -> Float[np.ndarray, "S M"]:
    picked_SM: Float[np.ndarray, "S M"] = np.append(value_C, absent)[index_SM]
    return picked_SM


def _join(exploit: _Part, explore: _Part, *, chance: float, rng: np.random.Generator) -> Slate:
    """Explored items into uniformly random slots, exploited ones into the others in their order."""
    row_SK = np.concatenate((explore.row_SE, exploit.row_SE), axis=1)
    draws, slots = row_SK.shape
    explored = explore.row_SE.shape[1]
    slot_SK = rng.random((draws, slots)).argsort(axis=1)
    # `slot_SK` says which slot each item takes: random for the explored ones, the free slots in order for the others.
    slot_SK[:, explored:].sort(axis=1)
    from_SK = slot_SK.argsort(axis=1)
    margin_SK = np.concatenate((explore.margin_SE, exploit.margin_SE), axis=1)
    score_SK = np.concatenate((explore.score_SE, exploit.score_SE), axis=1)
    draw_S1 = np.arange(draws)[:, None]
    return Slate(
        row_SK[draw_S1, from_SK],
        score_SK[draw_S1, from_SK],
        from_SK < explored,
        _propensity(margin_SK, chance)[draw_S1, from_SK],
    )


def _propensity(margin_SK: Float[np.ndarray, "S K"], chance: float) -> Float[np.ndarray, "S K"]:
    """The chance to be exploited, or else explored: p = q + (1 - q) r."""
    with np.errstate(over="ignore"):
        exploit_SK = -np.expm1(-np.exp(margin_SK))
    propensity_SK: Float[np.ndarray, "S K"] = np.minimum(1.0, exploit_SK + (1.0 - exploit_SK) * chance)
    return propensity_SK
