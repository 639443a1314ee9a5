"""From scores to slates, with the exact propensity of every item in them; docs/propensities.md section 3.

    phi_i = s_i / T for the candidates C;  G_i = phi_i + Gumbel(0, 1);  exploit: the K - m largest G
    explore: m items, uniformly without replacement, from everything eligible outside the exploit set; in random slots
    kappa = the (K - m + 1)-th largest G for an item of the exploit set, else the (K - m)-th
    q_i = 1 - exp(-exp(phi_i - kappa)) for i in C, else 0;  r = m / (N - (K - m));  p_i = q_i + (1 - q_i) r

Given all other draws, q_i is the chance that i is among the exploited (Kool et al. 2019), so `E[1{i served} / p_i] = 1`
for every item that can be served at all. T = 0 is greedy. Where fewer than K items are eligible, the slate holds all of
them; where fewer than K - m candidates have a finite score, exploration fills the slots that they leave, unless the
policy is told that it must not.

A whole batch of users is drawn by array operations whose number does not follow the batch. Shapes: B users (or S
independent slates for one user), K slots, C candidates, N items that anybody may get, X of them excluded for a user, E
exploited, M explored, L numbers drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from model.catalogue import PADDING
from model.noise import Generated, Noise

GREEDY_BELOW = 1e-6
"""Temperatures up to this are taken as zero: the noise would drown in the rounding of scores so much larger."""
EVERY_SLOT = 1 << 30
DENSE = 8
"""Where fewer than so many items per slot are eligible, exploring sorts them all; else it draws until enough fit."""
SPARE = 3
"""Rows drawn beyond those to be explored, so that a second round is seldom needed."""

GUMBELS, ROWS, KEYS, SLOTS = range(4)
"""Streams of noise, one for each purpose."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Eligible:
    """What may be served to a user: `row_N` without `excluded_X`, without ever writing it down."""

    row_N: Int[np.ndarray, " N"]
    """Distinct rows, ascending, shared by all users."""
    excluded_X: Int[np.ndarray, " X"]
    """Distinct rows, each one of `row_N`; at most half of them."""

    @property
    def count(self) -> int:
        """How many may be served."""
        return len(self.row_N) - len(self.excluded_X)


class Shortlist(NamedTuple):
    """What a policy chooses from for one user."""

    row_C: Int[np.ndarray, " C"]
    """Candidates, distinct, each eligible: the best of the search. PADDING and scores of -inf may stand at the end."""
    score_C: Float[np.ndarray, " C"]
    eligible: Eligible


class Shortlists(NamedTuple):
    """The same for a batch of users whose `eligible.row_N` is one and the same."""

    row_BC: Int[np.ndarray, "B C"]
    score_BC: Float[np.ndarray, "B C"]
    row_N: Int[np.ndarray, " N"]
    excluded_BX: Int[np.ndarray, "B X"]
    """Filled up with PADDING."""
    eligible_B: Int[np.ndarray, " B"]
    """How many may be served to each."""


class Slate(NamedTuple):
    """Served items in slot order, of one draw [K] or of many [B, K]; PADDING in slots that stay empty, at the end."""

    row_K: Int[np.ndarray, "*B K"]
    score_K: Float[np.ndarray, "*B K"]
    """Before noise; NaN for an explored item that was no candidate."""
    explored_K: Bool[np.ndarray, "*B K"]
    propensity_K: Float[np.ndarray, "*B K"]
    """In (0, 1], float64; 1 in an empty slot."""


class Counts(NamedTuple):
    """How a slate is made up, per user."""

    exploited_B: Int[np.ndarray, " B"]
    explored_B: Int[np.ndarray, " B"]
    chance_B: Float[np.ndarray, " B"]
    """r: of an item that is not exploited, to be explored."""


class Drawn(NamedTuple):
    """Slates with all that the propensity of any item follows from, served or not."""

    slate: Slate
    row_BC: Int[np.ndarray, "B C"]
    phi_BC: Float[np.ndarray, "B C"]
    exploited_BE: Int[np.ndarray, "B E"]
    """Rows, filled up with PADDING."""
    kappa_in_B: Float[np.ndarray, " B"]
    kappa_out_B: Float[np.ndarray, " B"]
    chance_B: Float[np.ndarray, " B"]

    def propensity_of(self, row_BL: Int[np.ndarray, "B L"]) -> Float[np.ndarray, "B L"]:
        """The chance of eligible items to be served, given the noise of all others; 0 for PADDING."""
        phi_BL = _pick(self.phi_BC, _find(row_BL, self.row_BC), -np.inf)
        inside_BL = _among(row_BL, self.exploited_BE) & (row_BL != PADDING)
        kappa_BL = np.where(inside_BL, self.kappa_in_B[:, None], self.kappa_out_B[:, None])
        return np.where(row_BL == PADDING, 0.0, _propensity(phi_BL - kappa_BL, self.chance_B[:, None]))


class _Noisy(NamedTuple):
    """Candidates in the order of their noisy scores, and the thresholds for those inside and outside."""

    index_BE: Int[np.ndarray, "B E"]
    kappa_in_B: Float[np.ndarray, " B"]
    kappa_out_B: Float[np.ndarray, " B"]


class _Part(NamedTuple):
    """The exploited or the explored items of each user, each with `phi - kappa`; PADDING fills up."""

    row_BE: Int[np.ndarray, "B E"]
    score_BE: Float[np.ndarray, "B E"]
    margin_BE: Float[np.ndarray, "B E"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A way to draw slates: all that a propensity follows from, besides scores and what is eligible."""

    temperature: float
    exploration_slots: int
    fills: bool = True
    """Whether exploration fills the slots that too few candidates leave; else the slate is shorter."""

    def draw(self, shortlist: Shortlist, *, slate_size: int, rng: np.random.Generator) -> Slate:
        """One slate, of fewer than `slate_size` items where fewer are eligible. Its cost follows the candidates."""
        return Slate(*(values[0] for values in self.draw_many(shortlist, slate_size=slate_size, count=1, rng=rng)))

    def draw_many(self, shortlist: Shortlist, *, slate_size: int, count: int, rng: np.random.Generator) -> Slate:
        """`count` independent slates for the same user, with a leading axis."""
        many = repeated(shortlist, count)
        return self.draw_batch(many, size_B=np.full(count, slate_size), noise=Generated(rng, count)).slate

    def draw_batch(self, shortlists: Shortlists, *, size_B: Int[np.ndarray, " B"], noise: Noise) -> Drawn:
        """A slate of `size_B` items, or fewer, for every user."""
        phi_BC, score_BC = self._scaled(shortlists.score_BC)
        counts = self._counts(shortlists, size_B, np.isfinite(phi_BC).sum(axis=1))
        noisy = self._perturb(phi_BC, counts.exploited_B, noise)
        exploit = _exploit(shortlists.row_BC, score_BC, phi_BC, noisy, counts.exploited_B)
        row_BM = _explore(shortlists, exploit.row_BE, counts.explored_B, noise)
        index_BM = _find(row_BM, shortlists.row_BC)
        margin_BM = _pick(phi_BC, index_BM, -np.inf) - noisy.kappa_out_B[:, None]
        explore = _Part(row_BM, _pick(score_BC, index_BM, np.nan), margin_BM)
        return Drawn(
            _joined(exploit, explore, counts, noise),
            shortlists.row_BC,
            phi_BC,
            exploit.row_BE,
            noisy.kappa_in_B,
            noisy.kappa_out_B,
            counts.chance_B,
        )

    def _scaled(self, score_BC: Float[np.ndarray, "B C"]) -> tuple[Float[np.ndarray, "B C"], Float[np.ndarray, "B C"]]:
        """Scores over T and scores in float64; whatever is not finite can only be explored."""
        score_BC = score_BC.astype(np.float64)
        phi_BC = score_BC / self.temperature if self.temperature > GREEDY_BELOW else score_BC
        return np.where(np.isfinite(phi_BC), phi_BC, -np.inf), score_BC

    def _counts(self, shortlists: Shortlists, size_B: Int[np.ndarray, " B"], finite_B: Int[np.ndarray, " B"]) -> Counts:
        served_B = np.minimum(size_B, shortlists.eligible_B)
        exploited_B = np.minimum(np.maximum(0, served_B - self.exploration_slots), finite_B)
        explored_B = served_B - exploited_B
        if not self.fills:
            explored_B = np.minimum(explored_B, self.exploration_slots)
        return Counts(exploited_B, explored_B, explored_B / np.maximum(1, shortlists.eligible_B - exploited_B))

    def _perturb(self, phi_BC: Float[np.ndarray, "B C"], exploited_B: Int[np.ndarray, " B"], noise: Noise) -> _Noisy:
        most = int(exploited_B.max(initial=0))
        if self.temperature > GREEDY_BELOW:
            return _largest(_with_gumbels(phi_BC, noise), exploited_B, most)
        index_BE = np.argsort(-phi_BC, axis=1, kind="stable")[:, :most]
        return _Noisy(index_BE, np.full(len(phi_BC), -np.inf), np.full(len(phi_BC), np.inf))


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


def stacked(shortlists: Sequence[Shortlist]) -> Shortlists:
    """Users of one `eligible.row_N` side by side, as wide as the widest."""
    row_N = shortlists[0].eligible.row_N
    assert all(one.eligible.row_N is row_N for one in shortlists), "their exclusions refer to other rows"
    return Shortlists(
        padded_rows([one.row_C for one in shortlists]),
        _padded([one.score_C for one in shortlists], -np.inf, np.float64),
        row_N,
        padded_rows([one.eligible.excluded_X for one in shortlists]),
        np.array([one.eligible.count for one in shortlists]),
    )


def repeated(shortlist: Shortlist, count: int) -> Shortlists:
    """One user, so many times."""
    return Shortlists(
        np.broadcast_to(shortlist.row_C, (count, len(shortlist.row_C))),
        np.broadcast_to(shortlist.score_C, (count, len(shortlist.score_C))),
        shortlist.eligible.row_N,
        np.broadcast_to(shortlist.eligible.excluded_X, (count, len(shortlist.eligible.excluded_X))),
        np.full(count, shortlist.eligible.count),
    )


def padded_rows(rows: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, "B X"]:
    """Rows of different number side by side, filled up with PADDING."""
    return _padded(rows, float(PADDING), np.int64)


def _padded(parts: Sequence[np.ndarray], filling: float, kind: type) -> np.ndarray:
    padded_BX: np.ndarray = np.full((len(parts), max((len(part) for part in parts), default=0)), filling, dtype=kind)
    for padded_X, part in zip(padded_BX, parts, strict=True):
        padded_X[: len(part)] = part
    return padded_BX


def _with_gumbels(phi_BC: Float[np.ndarray, "B C"], noise: Noise) -> Float[np.ndarray, "B C"]:
    """A Gumbel variate is minus the logarithm of an exponential one, and that minus the logarithm of a uniform one."""
    noisy_BC = noise.uniform(GUMBELS, 0, phi_BC.shape[1])
    np.log(noisy_BC, out=noisy_BC)
    np.negative(noisy_BC, out=noisy_BC)
    np.log(noisy_BC, out=noisy_BC)
    np.subtract(phi_BC, noisy_BC, out=noisy_BC)
    return noisy_BC


def _largest(noisy_BC: Float[np.ndarray, "B C"], exploited_B: Int[np.ndarray, " B"], most: int) -> _Noisy:
    """The `exploited` largest of each, in falling order; the thresholds are the next one and the last of them."""
    users, candidates = noisy_BC.shape
    wanted = min(most + 1, candidates)
    index_BF = (
        noisy_BC.argpartition(candidates - wanted, axis=1)[:, candidates - wanted :] if wanted else _nothing(users)
    )
    value_BF = _taken(noisy_BC, index_BF)
    order_BF = value_BF.argsort(axis=1)[:, ::-1]
    index_BF = _taken(index_BF, order_BF)
    value_BF = _taken(value_BF, order_BF)
    bars_BF = np.concatenate((np.full((users, 1), np.inf), value_BF, np.full((users, 1), -np.inf)), axis=1)
    user_B = np.arange(users)
    return _Noisy(index_BF[:, :most], bars_BF[user_B, exploited_B + 1], bars_BF[user_B, exploited_B])


def _taken(value_BC: np.ndarray, index_BL: Int[np.ndarray, "B L"]) -> np.ndarray:
    """Of each user the values at these places; `np.take_along_axis`, without what that does for other shapes."""
    taken_BL: np.ndarray = value_BC[np.arange(len(index_BL))[:, None], index_BL]
    return taken_BL


def _nothing(users: int) -> Int[np.ndarray, "B 0"]:
    return np.empty((users, 0), dtype=np.int64)


def _exploit(
    row_BC: Int[np.ndarray, "B C"],
    score_BC: Float[np.ndarray, "B C"],
    phi_BC: Float[np.ndarray, "B C"],
    noisy: _Noisy,
    exploited_B: Int[np.ndarray, " B"],
) -> _Part:
    beyond_BE = np.arange(noisy.index_BE.shape[1]) >= exploited_B[:, None]
    row_BE = _taken(row_BC, noisy.index_BE)
    phi_BE = np.where(beyond_BE, 0.0, _taken(phi_BC, noisy.index_BE))
    margin_BE = phi_BE - noisy.kappa_in_B[:, None]
    return _Part(np.where(beyond_BE, PADDING, row_BE), _taken(score_BC, noisy.index_BE), margin_BE)


def _explore(
    shortlists: Shortlists, taken_BE: Int[np.ndarray, "B E"], explored_B: Int[np.ndarray, " B"], noise: Noise
) -> Int[np.ndarray, "B M"]:
    """Rows uniformly without replacement from what is eligible and not taken, filled up with PADDING."""
    row_BM = np.full((len(explored_B), int(explored_B.max(initial=0))), PADDING, dtype=np.int64)
    served_B = explored_B + (taken_BE != PADDING).sum(axis=1)
    is_dense_B = shortlists.eligible_B < DENSE * served_B
    if explored_B.any() and not is_dense_B.any():  # as nearly always: nobody has to be told apart
        barred_BX = np.concatenate((shortlists.excluded_BX, taken_BE), axis=1)
        return _explore_sparse(shortlists.row_N, barred_BX, explored_B, noise)
    for users, fill in ((np.flatnonzero(is_dense_B), _explore_dense), (np.flatnonzero(~is_dense_B), _explore_sparse)):
        if users.size and explored_B[users].any():
            barred_SX = np.concatenate((shortlists.excluded_BX[users], taken_BE[users]), axis=1)
            row_SM = fill(shortlists.row_N, barred_SX, explored_B[users], noise.of(users))
            row_BM[users, : row_SM.shape[1]] = row_SM
    return row_BM


def _explore_dense(
    row_N: Int[np.ndarray, " N"], barred_BX: Int[np.ndarray, "B X"], explored_B: Int[np.ndarray, " B"], noise: Noise
) -> Int[np.ndarray, "B M"]:
    """Every row gets a random key, and the smallest keys win."""
    key_BN = noise.uniform(KEYS, 0, len(row_N))
    place_BX = np.minimum(np.searchsorted(row_N, barred_BX), len(row_N) - 1)
    user_BX, slot_BX = np.nonzero(row_N[place_BX] == barred_BX)
    key_BN[user_BX, place_BX[user_BX, slot_BX]] = np.inf
    most = int(explored_B.max())
    place_BM = key_BN.argpartition(most - 1, axis=1)[:, :most]
    order_BM = _taken(key_BN, place_BM).argsort(axis=1)
    row_BM = row_N[_taken(place_BM, order_BM)]
    return np.where(np.arange(most) < explored_B[:, None], row_BM, PADDING)


def _explore_sparse(
    row_N: Int[np.ndarray, " N"], barred_BX: Int[np.ndarray, "B X"], explored_B: Int[np.ndarray, " B"], noise: Noise
) -> Int[np.ndarray, "B M"]:
    """The first rows of an endless uniform sequence that are neither barred nor there already."""
    most = int(explored_B.max())
    row_BL, fits_BL = _nothing(len(barred_BX)), np.empty((len(barred_BX), 0), dtype=np.bool_)
    while (fits_BL.sum(axis=1) < explored_B).any():
        start, stop = row_BL.shape[1], row_BL.shape[1] + most + SPARE
        place_BL = (noise.uniform(ROWS, start, stop) * len(row_N)).astype(np.int64)
        row_BL = np.concatenate((row_BL, row_N[np.minimum(place_BL, len(row_N) - 1)]), axis=1)
        fits_BL = np.concatenate((fits_BL, _fits(row_BL, barred_BX, start)), axis=1)
    nth_BL = np.where(fits_BL, fits_BL.cumsum(axis=1) - 1, most)
    user, slot = np.nonzero(nth_BL < explored_B[:, None])
    row_BM = np.full((len(row_BL), most), PADDING, dtype=np.int64)
    row_BM[user, nth_BL[user, slot]] = row_BL[user, slot]
    return row_BM


def _fits(row_BL: Int[np.ndarray, "B L"], barred_BX: Int[np.ndarray, "B X"], start: int) -> Bool[np.ndarray, "B T"]:
    """Of the rows from `start` on: neither barred nor drawn before."""
    fits_BT = ~_among(row_BL[:, start:], barred_BX)
    for nth in range(start, row_BL.shape[1]):
        fits_BT[:, nth - start] &= ~(row_BL[:, :nth] == row_BL[:, nth : nth + 1]).any(axis=1)
    return fits_BT


def _among(row_BL: Int[np.ndarray, "B L"], set_BX: Int[np.ndarray, "B X"]) -> Bool[np.ndarray, "B L"]:
    """Whether each row is one of its user's set; column by column, which needs little memory."""
    found_BL = np.empty(row_BL.shape, dtype=np.bool_)
    for nth in range(row_BL.shape[1]):
        found_BL[:, nth] = (set_BX == row_BL[:, nth : nth + 1]).any(axis=1)
    return found_BL


def _find(row_BL: Int[np.ndarray, "B L"], row_BC: Int[np.ndarray, "B C"]) -> Int[np.ndarray, "B L"]:
    """Where each row stands among its user's candidates, -1 if nowhere."""
    index_BL = np.full(row_BL.shape, -1)
    for nth in range(row_BL.shape[1] if row_BC.shape[1] else 0):
        same_BC = row_BC == row_BL[:, nth : nth + 1]
        index_BL[:, nth] = np.where(same_BC.any(axis=1), same_BC.argmax(axis=1), -1)
    return index_BL


def _pick(
    value_BC: Float[np.ndarray, "B C"], index_BL: Int[np.ndarray, "B L"], absent: float
) -> Float[np.ndarray, "B L"]:
    if not value_BC.shape[1]:
        return np.full(index_BL.shape, absent)
    return np.where(index_BL < 0, absent, _taken(value_BC, np.maximum(index_BL, 0)))


def _joined(exploit: _Part, explore: _Part, counts: Counts, noise: Noise) -> Slate:
    """Explored items in uniformly random slots, exploited ones in the others in their order."""
    served_B = counts.exploited_B + counts.explored_B
    slots = int(served_B.max(initial=0))
    is_empty_BK = np.arange(slots) >= served_B[:, None]
    explored_BK = _explored_slots(counts, is_empty_BK, noise)
    nth_explored_BK = np.maximum(explored_BK.cumsum(axis=1) - 1, 0)
    nth_exploited_BK = np.maximum((~explored_BK).cumsum(axis=1) - 1, 0)
    most_explored, width = explore.row_BE.shape[1], explore.row_BE.shape[1] + exploit.row_BE.shape[1]
    from_BK = np.where(explored_BK, nth_explored_BK, nth_exploited_BK + most_explored)
    from_BK = np.minimum(from_BK, max(width - 1, 0))

    def placed(explore_BM: np.ndarray, exploit_BE: np.ndarray) -> np.ndarray:
        """A slot takes the next explored or the next exploited item."""
        return _taken(np.concatenate((explore_BM, exploit_BE), axis=1), from_BK)

    if not slots:
        return Slate(_nothing(len(served_B)), np.empty(is_empty_BK.shape), explored_BK, np.empty(is_empty_BK.shape))
    score_BK = placed(explore.score_BE, exploit.score_BE)
    propensity_BK = _propensity(placed(explore.margin_BE, exploit.margin_BE), counts.chance_B[:, None])
    return Slate(
        np.where(is_empty_BK, PADDING, placed(explore.row_BE, exploit.row_BE)),
        np.where(is_empty_BK | ~np.isfinite(score_BK), np.nan, score_BK),
        explored_BK,
        np.where(is_empty_BK, 1.0, propensity_BK),
    )


def _explored_slots(counts: Counts, is_empty_BK: Bool[np.ndarray, "B K"], noise: Noise) -> Bool[np.ndarray, "B K"]:
    """Those with the smallest random keys."""
    explored_BK = np.zeros(is_empty_BK.shape, dtype=np.bool_)
    most = int(counts.explored_B.max(initial=0))
    if most:
        key_BK = noise.uniform(SLOTS, 0, is_empty_BK.shape[1])
        key_BK[is_empty_BK] = np.inf
        first_BM = key_BK.argmin(axis=1)[:, None] if most == 1 else key_BK.argsort(axis=1)[:, :most]
        np.put_along_axis(explored_BK, first_BM, np.arange(first_BM.shape[1]) < counts.explored_B[:, None], axis=1)
    return explored_BK


def _propensity(margin_BK: Float[np.ndarray, "B K"], chance_B1: Float[np.ndarray, "B 1"]) -> Float[np.ndarray, "B K"]:
    """The chance to be exploited, or else explored: p = q + (1 - q) r."""
    with np.errstate(over="ignore"):
        exploit_BK = -np.expm1(-np.exp(margin_BK))
    propensity_BK: Float[np.ndarray, "B K"] = np.minimum(1.0, exploit_BK + (1.0 - exploit_BK) * chance_B1)
    return propensity_BK
