"""The gate: a challenger replaces the live champion only when it is better on the same events (I6).

Both are judged on what neither has learnt, by two figures:

1. Foresight: NDCG@10 of the next clicks, each from the history before it, over the whole catalogue; an item that a
   model does not know is its miss. A served click counts by its propensity as in learning (trainer/weights.py), for
   whoever repeats what was served foresees what is clicked there, and knows nothing. What decides is the lower end of
   the confidence interval of the weighted mean of paired differences.
2. Earnings: clicks per item that each would have got, from the slates that were served meanwhile
   (trainer/offpolicy.py). Who foresees better and would earn less, with confidence, is rejected.

Shapes: N clicks, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from model.catalogue import PADDING
from model.checkpoint import ServingModel
from model.estimators import snips
from model.metrics import gains
from model.ranking import rank_of
from model.settings import PolicySettings
from stream.examples import ClickExample, SlateExample
from trainer.exposure import Exposure
from trainer.offpolicy import Compared, compared, served_after
from trainer.settings import GateSettings, TrainerSettings
from trainer.weights import Weigher

CUT_OFF = 10
USERS_AT_ONCE = 256


class Verdict(NamedTuple):
    """What the gate decided and why."""

    status: Literal["promoted", "rejected", "undecided"]
    reason: str
    events: int
    ndcg_champion: float | None
    ndcg_challenger: float | None
    compared: Compared | None = None
    """Earnings, where slates with propensities were served."""


class Log(NamedTuple):
    """What happened behind the cuts of both models."""

    clicks: Sequence[ClickExample]
    slates: Sequence[SlateExample] = ()


class Rules(NamedTuple):
    """What a verdict depends on: the gate, how slates are drawn, and how clicks are weighed."""

    gate: GateSettings
    policy: PolicySettings = PolicySettings()
    trainer: TrainerSettings = TrainerSettings()


def judge(champion: ServingModel, challenger: ServingModel, log: Log, rules: Rules) -> Verdict:
    """Compares the two on the same events; none of the clicks may have been learnt by either."""
    questions = [click for click in log.clicks if is_question(click)]
    return decide(
        ndcg_per_click(champion, questions),
        ndcg_per_click(challenger, questions),
        rules.gate,
        weight_N=weights_of(questions, log.slates, rules.trainer),
        earnings=_earnings(champion, challenger, log.slates, rules),
    )


def weights_of(
    clicks: Sequence[ClickExample], slates: Sequence[SlateExample], settings: TrainerSettings
) -> Float[np.ndarray, " N"]:
    """As in learning, over a window of these clicks alone."""
    exposure = Exposure(settings.weight_window)
    for slate in slates:
        exposure.observe(slate)
    return Weigher(settings).weigh(clicks, exposure=exposure).weight_N


def _earnings(
    champion: ServingModel, challenger: ServingModel, slates: Sequence[SlateExample], rules: Rules
) -> Compared | None:
    through = max(one.manifest.trained_through_ms or 0 for one in (champion, challenger))
    later = served_after(slates, through)
    if not later:
        return None
    return compared(
        champion,
        challenger,
        later,
        policy=rules.policy,
        position_bias=rules.trainer.position_bias,
        confidence=rules.gate.confidence,
    )


def is_question(click: ClickExample) -> bool:
    """A click of a user with a history, on something that the user does not have yet."""
    return bool(click.context) and click.item_id not in click.context


def decide(
    champion_N: Float[np.ndarray, " N"],
    challenger_N: Float[np.ndarray, " N"],
    settings: GateSettings,
    *,
    weight_N: Float[np.ndarray, " N"] | None = None,
    earnings: Compared | None = None,
) -> Verdict:
    """The rule of the gate on NDCG@10 per click, the same clicks in the same order; without weights all count alike."""
    weight_N = np.ones(len(champion_N)) if weight_N is None else weight_N
    count = int(np.count_nonzero(weight_N))
    champion, challenger = (_mean(weight_N, gain_N) for gain_N in (champion_N, challenger_N))
    if count < settings.min_events:
        reason = f"only {count} of gate.min_events = {settings.min_events} clicks to judge by; the live model stays"
        return Verdict("undecided", reason, count, champion, challenger, earnings)
    difference = snips(weight_N, challenger_N - champion_N, confidence=settings.confidence)
    foresees = difference.low > -settings.tolerance
    reason = (
        f"NDCG@10 {challenger:.4f} against {champion:.4f} on {count} clicks; the difference is at least "
        f"{difference.low:+.4f} with {settings.confidence:.0%} confidence, {'above' if foresees else 'not above'} "
        f"{-settings.tolerance:+.4f}"
    )
    earns_less, told = _told(earnings, settings)
    status: Literal["promoted", "rejected"] = "promoted" if foresees and not earns_less else "rejected"
    return Verdict(status, f"{reason}; {told}", count, champion, challenger, earnings)


def _told(earnings: Compared | None, settings: GateSettings) -> tuple[bool, str]:
    """Whether the challenger would earn less, with confidence, and a line that says what is known of it."""
    if earnings is None:
        return False, "no slate was served meanwhile"
    size, difference = earnings.difference.effective_sample_size, earnings.difference
    if size < settings.min_effective_impressions:
        return False, (
            f"the {earnings.slates} slates served meanwhile are worth {size:.0f} impressions, too few to say who would "
            "earn more"
        )
    return difference.high < 0.0, (
        f"from {earnings.slates} slates it would have earned {earnings.challenger.value:.4f} clicks an item against "
        f"{earnings.champion.value:.4f}, a difference of {difference.low:+.4f} to {difference.high:+.4f}"
    )


def ndcg_per_click(serving: ServingModel, clicks: Sequence[ClickExample]) -> Float[np.ndarray, " N"]:
    """NDCG@10 of the model for each click, predicted from the history before it."""
    parts = [_ndcg(serving, clicks[start : start + USERS_AT_ONCE]) for start in range(0, len(clicks), USERS_AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty(0)


@torch.inference_mode()
def _ndcg(serving: ServingModel, clicks: Sequence[ClickExample]) -> Float[np.ndarray, " N"]:
    catalogue, network = serving.catalogue, serving.model
    length = max(len(click.context) for click in clicks)
    row_NT = np.full((len(clicks), length), PADDING, dtype=np.int64)
    for index, click in enumerate(clicks):
        row_NT[index, length - len(click.context) :] = catalogue.rows_of(click.context)
    history_NT = torch.from_numpy(row_NT)
    rank_N = rank_of(
        network.encode_last(history_NT[:, -network.settings.max_length :]),
        network.item_RD[: catalogue.size],
        target_P=torch.from_numpy(catalogue.rows_of(click.item_id for click in clicks)),
        excluded_PE=history_NT,
        live_R=torch.from_numpy(catalogue.live_mask()),
    )
    return gains(rank_N, k=CUT_OFF).numpy().astype(np.float64)


def _mean(weight_N: Float[np.ndarray, " N"], gain_N: Float[np.ndarray, " N"]) -> float | None:
    return float(weight_N @ gain_N / weight_N.sum()) if weight_N.any() else None
