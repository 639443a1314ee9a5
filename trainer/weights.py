"""What a click against the catalogue is worth: docs/propensities.md section 4, term (b), outcome by outcome.

`w = min(1/p, M) * mean(theta) / theta_k`, divided by its running mean over a window of clicks (never over the
micro-batch), gradient-free. M is the largest cap that keeps the window's effective sample size `(sum w)^2 / sum w^2`
at a set share of its clicks. Shapes: N clicks, W clicks of the window.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from stream.examples import ClickExample, Served, ShownItem
from trainer.exposure import Exposure
from trainer.positions import examination
from trainer.settings import TrainerSettings

Outcome = Literal["organic", "exact", "estimated", "unknown", "fixed", "invalid"]
Lack = Literal["not_logged", "missing", "not_a_number", "not_positive", "above_one"]
"""Why a propensity cannot be used: none was promised (it is estimated here), or the one that was promised is none."""

LARGEST_CAP = 1e300
"""Whatever the cap, sums of weights stay finite: also for 1/p of the smallest floats, which is infinite."""
BISECTIONS = 40
"""Of the logarithm, which finds a cap to a billionth of it."""
CAP_SHARE: dict[Outcome, float] = {"exact": 1.0, "estimated": 0.5, "unknown": 0.5}
"""Outcomes with a propensity, known or estimated here, and the share of the cap that 1/p may reach."""


class Weights(NamedTuple):
    """The weight of every click of a micro-batch, and what became of them."""

    weight_N: Float[np.ndarray, " N"]
    outcomes: Counter[Outcome]
    lacks: Counter[Lack]
    weighed: Sequence[int]
    """Which of the clicks have a propensity, logged or estimated."""


def outcome_of(served: Served | None) -> Outcome:
    """The row of the table that a click stands in.

    `invalid` is a propensity that was promised and is missing, NaN, not above zero, or above one.
    """
    if served is None:
        return "organic"
    if served.source == "fixed":
        return "fixed"
    if served.propensity_kind == "none":
        return "unknown"
    return served.propensity_kind if is_probability(served.propensity) else "invalid"


def lack_of(served: Served | ShownItem) -> Lack | None:
    """Why there is no propensity where one is needed; None where there is one. Pinned items need none."""
    if served.source == "fixed":
        return None
    if served.propensity_kind == "none":
        return "not_logged"
    propensity = served.propensity
    if propensity is None:
        return "missing"
    if math.isnan(propensity):
        return "not_a_number"
    if propensity <= 0.0:
        return "not_positive"
    return "above_one" if propensity > 1.0 else None


def lacks_of(served: Iterable[Served | ShownItem]) -> Counter[Lack]:
    """How many lack a propensity, by reason."""
    return Counter(lack for one in served if (lack := lack_of(one)) is not None)


def is_probability(propensity: float | None) -> bool:
    """Whether something that happened can have had this chance."""
    return propensity is not None and 0.0 < propensity <= 1.0


def balanced(served: Served) -> float | None:
    """The chance that any recommender of the surface shows the item: the balance heuristic (Agarwal et al. 2017).

    `sum_r rho_r p_r / sum_r rho_r` over the recommenders whose propensity is known, the one that served among them:
    given that one of these got the request, that is the chance.
    """
    if served.propensity is None or not served.rivals:
        return served.propensity
    known = ((served.router_probability, served.propensity), *served.rivals)
    return sum(share * propensity for share, propensity in known) / sum(share for share, _ in known)


def effective_sample_size(weight_N: Float[np.ndarray, " N"]) -> float:
    """`(sum w)^2 / sum w^2`: as many clicks of equal weight would say as much."""
    if not weight_N.size:
        return 0.0
    # Squares of very large weights would be infinite; how large they are together does not matter.
    share_N = weight_N / weight_N.max()
    return float(share_N.sum() ** 2 / np.square(share_N).sum())


class Evidence(NamedTuple):
    """What served clicks that carry a weight are known by, float64."""

    inverse_N: Float[np.ndarray, " N"]
    """1 / propensity."""
    cap_share_N: Float[np.ndarray, " N"]
    """1 for an exact propensity; an estimated one may reach half the cap."""
    examination_N: Float[np.ndarray, " N"]
    """theta: the chance that the slot was looked at; NaN where the slot is unknown."""

    def weights(self, *, cap: float, mean_examination: float) -> Float[np.ndarray, " N"]:
        """`min(1/p, cap) * mean(theta) / theta_k`; an unknown slot counts as an average one."""
        position_N = mean_examination / np.where(np.isnan(self.examination_N), mean_examination, self.examination_N)
        weight_N: np.ndarray = np.minimum(self.inverse_N, np.maximum(1.0, cap * self.cap_share_N)) * position_N
        return weight_N

    def mean_examination(self) -> float:
        """Over the known slots; 1 where none is known."""
        known_N = self.examination_N[~np.isnan(self.examination_N)]
        return float(known_N.mean()) if known_N.size else 1.0


NOTHING = Evidence(np.empty(0), np.empty(0), np.empty(0))


def largest_cap(evidence: Evidence, *, min_effective_share: float) -> float:
    """The largest cap with an effective sample size of at least that share of the clicks; at least 1.

    By bisection of its logarithm: a single tiny propensity must not put all others beyond reach.
    """
    if not evidence.inverse_N.size:
        return 1.0
    mean_examination = evidence.mean_examination()
    enough = min_effective_share * evidence.inverse_N.size

    def holds(cap: float) -> bool:
        return effective_sample_size(evidence.weights(cap=cap, mean_examination=mean_examination)) >= enough

    low, high = 1.0, min(LARGEST_CAP, float((evidence.inverse_N / evidence.cap_share_N).max()))
    if holds(high):
        return high
    for _ in range(BISECTIONS):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class Weigher:
    """Weighs clicks by the window of served clicks up to and including their micro-batch."""

    def __init__(self, settings: TrainerSettings, *, window: Evidence = NOTHING) -> None:
        self._settings = settings
        self.window = window
        """Part of the checkpoint, like everything that the next weight depends on."""
        self.examination_factors: tuple[float, ...] = ()
        """By place, the correction of theta (trainer/positions.py); empty where the setting alone counts."""
        self._measure()

    def weigh(self, clicks: Sequence[ClickExample], *, exposure: Exposure) -> Weights:
        """The weight of each click in term (b), 0 where it teaches nothing there."""
        outcomes = [outcome_of(click.served) for click in clicks]
        carrying = [index for index, outcome in enumerate(outcomes) if outcome in CAP_SHARE]
        weight_N = np.array([outcome == "organic" for outcome in outcomes], dtype=np.float64)
        evidence = self._evidence([(clicks[index], outcomes[index]) for index in carrying], exposure)
        if carrying:
            self._remember(evidence)
        weight_N[carrying] = evidence.weights(cap=self.cap, mean_examination=self._mean_examination) / self._mean_weight
        lacks = lacks_of(click.served for click in clicks if click.served is not None)
        return Weights(weight_N, Counter(outcomes), lacks, carrying)

    def position_weight(self, position: int | None, *, seen: bool | None) -> float:
        """`mean(theta) / theta_k` of a clicked slot, for term (a); where its being seen is known, theta is 1."""
        theta = 1.0 if seen else self._theta(position)
        return 1.0 if math.isnan(theta) else self._mean_examination / theta

    def effective_sample_size(self) -> float:
        """Of the window, with the cap in force."""
        return effective_sample_size(self.window.weights(cap=self.cap, mean_examination=self._mean_examination))

    def _evidence(self, served_clicks: Sequence[tuple[ClickExample, Outcome]], exposure: Exposure) -> Evidence:
        rows = [
            (1.0 / _propensity(click, exposure), CAP_SHARE[outcome], self._examination(click))
            for click, outcome in served_clicks
        ]
        inverse_N, cap_share_N, examination_N = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return Evidence(inverse_N, cap_share_N, examination_N)

    def _examination(self, click: ClickExample) -> float:
        assert click.served is not None
        return self._theta(click.served.position)

    def _theta(self, position: int | None) -> float:
        return examination(position, bias=self._settings.position_bias, factors=self.examination_factors)

    def _remember(self, evidence: Evidence) -> None:
        length = self._settings.weight_window
        self.window = Evidence(
            *(np.concatenate((old, new))[-length:] for old, new in zip(self.window, evidence, strict=True))
        )
        self._measure()

    def _measure(self) -> None:
        fixed, share = self._settings.propensity_cap, self._settings.min_effective_share
        self.cap = min(fixed, LARGEST_CAP) if fixed is not None else largest_cap(self.window, min_effective_share=share)
        self._mean_examination = self.window.mean_examination()
        weight_W = self.window.weights(cap=self.cap, mean_examination=self._mean_examination)
        self._mean_weight = float(weight_W.mean()) if weight_W.size else 1.0


def _propensity(click: ClickExample, exposure: Exposure) -> float:
    assert click.served is not None
    if click.served.propensity_kind == "none":
        return exposure.propensity(click.served.policy, click.item_id)
    propensity = balanced(click.served)
    assert propensity is not None
    return propensity
