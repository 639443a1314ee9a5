"""Sessions in periods, and the protocol of ADER (Mi, Lin, Faltings, RecSys 2020): learn period t, be tested on t + 1.

Tested is every click of a session but its first, from the clicks before it, ranked over all items that there were up to
then; what the session has already is not left out, for people go back. Clicks on items that no earlier period had are
removed beforehand, and sessions that are left with a single click. Shapes: N questions, T positions, R rows, D units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from model.catalogue import PADDING
from trainer.learner import Learner

CUT = 20
QUESTIONS_AT_ONCE = 512

RowsOf = Callable[[Sequence[str]], np.ndarray]


class Session(NamedTuple):
    """Somebody's clicks, oldest first; item ids are text, as everywhere."""

    session_id: str
    items: tuple[str, ...]


class Click(NamedTuple):
    """One row of the file."""

    session_id: str
    item_id: str


class Week(NamedTuple):
    """One period."""

    clicks: Sequence[Click]
    """In the order of their arrival."""
    sessions: Sequence[Session]
    """In the order in which they began."""

    @property
    def items(self) -> set[str]:
        """What was clicked."""
        return {click.item_id for click in self.clicks}

    @property
    def targets(self) -> int:
        """Clicks that have something before them."""
        return sum(len(session.items) - 1 for session in self.sessions)


class Score(NamedTuple):
    """Of a test, in percent."""

    recall20: float
    mrr20: float
    questions: int


def read_weeks(path: Path) -> list[Week]:
    """A parquet file whose first three columns are period, session and item, rows in the order of their arrival.

    Raises:
        ValueError: fewer than three columns, or fewer than two periods.
    """
    table = pq.read_table(path)
    if table.num_columns < 3:
        raise ValueError(f"{path} has {table.num_columns} columns; period, session and item are needed, in this order")
    period_N, session_N, item_N = (table.column(index).to_numpy() for index in range(3))
    periods = np.unique(period_N).tolist()
    if len(periods) < 2:
        raise ValueError(f"{path} has one period; a second one is needed to be tested on")
    return [_week(session_N[period_N == period], item_N[period_N == period]) for period in periods]


def _week(session_N: np.ndarray, item_N: np.ndarray) -> Week:
    return week_of([Click(str(session), str(item)) for session, item in zip(session_N, item_N, strict=True)])


def week_of(clicks: Sequence[Click]) -> Week:
    """The clicks and their sessions."""
    items: dict[str, list[str]] = {}
    for click in clicks:
        items.setdefault(click.session_id, []).append(click.item_id)
    return Week(clicks, [Session(session_id, tuple(chosen)) for session_id, chosen in items.items()])


def questions_of(week: Week, known: set[str]) -> Week:
    """What is tested of a week by somebody who knows these items."""
    return week_of([click for click in week.clicks if click.item_id in known])


def examined(learner: Learner, week: Week) -> Score:
    """Recall@20 and MRR@20 of the network as it stands; every item of the week has a row."""
    ranks = [rank_P for rank_P, _ in _ranks(learner, week)]
    rank_N = np.concatenate(ranks) if ranks else np.zeros(0)
    is_hit_N = rank_N < CUT
    questions = max(1, len(rank_N))
    return Score(
        100 * float(is_hit_N.sum()) / questions, 100 * float((is_hit_N / (rank_N + 1.0)).sum()) / questions, len(rank_N)
    )


@torch.inference_mode()
def _ranks(learner: Learner, week: Week) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rank and target of every question; an item that scores as high as the target counts against it."""
    network, catalogue = learner.network, learner.catalogue
    item_RD = network.item_RD[: catalogue.size]
    dead_R = torch.from_numpy(~catalogue.live_mask())
    dead_R[PADDING] = True
    for row_NT, target_N in _questions(week, catalogue.rows_of, max_length=network.settings.max_length):
        score_NR = network.encode_last(torch.from_numpy(row_NT)) @ item_RD.T
        score_NR[:, dead_R] = -torch.inf
        target_N1 = score_NR.gather(1, torch.from_numpy(target_N)[:, None])
        yield ((score_NR >= target_N1).sum(dim=1) - 1).numpy(), target_N


def _questions(week: Week, rows_of: RowsOf, *, max_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prefixes of similar length together, and the item that followed each."""
    by_length: dict[int, list[tuple[np.ndarray, int]]] = {}
    for session in week.sessions:
        rows = rows_of(session.items)
        for end in range(1, len(rows)):
            prefix = rows[max(0, end - max_length) : end]
            by_length.setdefault(len(prefix), []).append((prefix, int(rows[end])))
    for questions in by_length.values():
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            chunk = questions[start : start + QUESTIONS_AT_ONCE]
            yield np.stack([prefix for prefix, _ in chunk]), np.array([target for _, target in chunk])
