"""The gate: a challenger replaces the live champion only when it foresees the same next clicks better (I6).

Both are judged on clicks that neither has learnt, each from the history before it, over the whole catalogue, by
NDCG@10; an item that a model does not know is its miss. What counts is the lower end of the confidence interval of the
mean paired difference. Shapes: N clicks, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from model.catalogue import PADDING
from model.checkpoint import ServingModel
from model.metrics import gains
from model.ranking import rank_of
from stream.examples import ClickExample
from trainer.settings import GateSettings

CUT_OFF = 10
USERS_AT_ONCE = 256


class Verdict(NamedTuple):
    """What the gate decided and why."""

    status: Literal["promoted", "rejected", "undecided"]
    reason: str
    events: int
    ndcg_champion: float | None
    ndcg_challenger: float | None


def judge(
    champion: ServingModel, challenger: ServingModel, clicks: Sequence[ClickExample], settings: GateSettings
) -> Verdict:
    """Compares the two on the same clicks; none of them may have been learnt by either."""
    questions = [click for click in clicks if is_question(click)]
    return decide(ndcg_per_click(champion, questions), ndcg_per_click(challenger, questions), settings)


def is_question(click: ClickExample) -> bool:
    """A click of a user with a history, on something that the user does not have yet."""
    return bool(click.context) and click.item_id not in click.context


def decide(
    champion_N: Float[np.ndarray, " N"], challenger_N: Float[np.ndarray, " N"], settings: GateSettings
) -> Verdict:
    """The rule of the gate on NDCG@10 per click, the same clicks in the same order."""
    count = len(champion_N)
    if count < settings.min_events:
        reason = f"only {count} of gate.min_events = {settings.min_events} clicks to judge by; the live model stays"
        return Verdict("undecided", reason, count, _mean(champion_N), _mean(challenger_N))
    difference_N = challenger_N - champion_N
    lower = float(difference_N.mean()) - _half_width(difference_N, confidence=settings.confidence)
    promoted = lower > -settings.tolerance
    reason = (
        f"NDCG@10 {challenger_N.mean():.4f} against {champion_N.mean():.4f} on {count} clicks; the difference is at "
        f"least {lower:+.4f} with {settings.confidence:.0%} confidence, {'above' if promoted else 'not above'} "
        f"{-settings.tolerance:+.4f}"
    )
    return Verdict(
        "promoted" if promoted else "rejected", reason, count, float(champion_N.mean()), float(challenger_N.mean())
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


def _half_width(difference_N: Float[np.ndarray, " N"], *, confidence: float) -> float:
    """Of the normal interval for the mean of paired differences."""
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    return quantile * float(difference_N.std(ddof=1)) / math.sqrt(len(difference_N))


def _mean(values_N: Float[np.ndarray, " N"]) -> float | None:
    return float(values_N.mean()) if len(values_N) else None
