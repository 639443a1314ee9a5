"""Leave one out: every user's last item is the test, the one before it the validation, the rest is for learning.

Shapes: B users, R rows of the item table, T positions, E items that a user has, C candidates.

As published for SASRec: at test time the history includes the validation item, at validation time it does not; nothing
is learnt from either. Two ways to rank the item that came next, neither among items that the user already has:

- among the whole catalogue, which is what a recommender has to do;
- among 100 drawn items (Kang & McAuley 2018, section 4.3), the same ones for every model: for comparison with the
  paper's table, and flattering (Krichene & Rendle 2020).

Ties count against the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from pyarrow import csv
from torch import Tensor

from model.catalogue import PADDING
from model.lengths import length_groups
from model.metrics import gains, hits
from model.ranking import rank_of
from model.sasrec import SASRec

CUT_OFF = 10
CANDIDATES = 100
CANDIDATE_SEED = 100
USERS_AT_ONCE = 256
SHORTEST = 3
"""A user with fewer items has nothing to be tested on, and is learnt from only."""

Held = Literal["validation", "test"]
_PLACE: dict[Held, int] = {"validation": -2, "test": -1}


class Figures(NamedTuple):
    """Means over users."""

    hr: float
    ndcg: float


class Judged(NamedTuple):
    """Both rankings of one model; None where the second was not asked for."""

    catalogue: Figures
    sampled: Figures | None


class Question(NamedTuple):
    """What is known of a user, and what came next."""

    history: Int[np.ndarray, " E"]
    target: int


class Fingerprint(NamedTuple):
    """Which file it is."""

    users: int
    items: int
    rows: int
    digest: str
    """Of what every user has, in order: SHA-256, its first 16 digits."""


class Split(NamedTuple):
    """Users' items as rows 1 to `items`, oldest first."""

    sequences: Sequence[Int[np.ndarray, " _"]]
    items: int

    def fingerprint(self) -> Fingerprint:
        """The same for the same users, items and order, whatever they are called."""
        digest = hashlib.sha256()
        for row_E in self.sequences:
            digest.update(len(row_E).to_bytes(8, "little") + row_E.astype("<i8").tobytes())
        rows = sum(len(row_E) for row_E in self.sequences)
        return Fingerprint(len(self.sequences), self.items, rows, digest.hexdigest()[:16])

    def training(self) -> list[Int[np.ndarray, " _"]]:
        """What may be learnt: all but the last two items; all of users who are not tested."""
        return [row_E[:-2] if len(row_E) >= SHORTEST else row_E for row_E in self.sequences]

    def questions(self, held: Held) -> list[Question]:
        """One for each user with enough items."""
        place = _PLACE[held]
        return [Question(row_E[:place], int(row_E[place])) for row_E in self.sequences if len(row_E) >= SHORTEST]

    def candidates(self) -> Int[np.ndarray, "B C"]:
        """For each question, drawn once and for all: items that the user never has, the test item included."""
        rng = np.random.default_rng(CANDIDATE_SEED)
        tested = [row_E for row_E in self.sequences if len(row_E) >= SHORTEST]
        return np.stack([_never_had(row_E, self.items, rng) for row_E in tested])


def read_split(path: Path) -> Split:
    """The first two columns of a file, user and item, in the order of time; parquet, or text with one pair a line.

    Raises:
        ValueError: a file that is not there, or with fewer than two columns.
    """
    table = _read(path)
    if table.num_columns < 2:
        raise ValueError(f"{path} has one column; two are needed, user and item, in the order of time")
    user_N, item_N = (_codes(table.column(index)) for index in (0, 1))
    order_N = np.argsort(user_N, kind="stable")
    row_N = item_N[order_N] + PADDING + 1
    sequences = np.split(row_N, np.flatnonzero(np.diff(user_N[order_N])) + 1)
    return Split(sequences, int(row_N.max()))


def judge(network: SASRec, split: Split, held: Held, *, candidate_BC: Int[np.ndarray, "B C"]) -> Judged:
    """How well the network foresees what was held back."""
    questions = split.questions(held)
    ranks = [
        _ranks(network, [questions[index] for index in part], candidate_BC[part], items=split.items)
        for part in _by_length(questions, network.settings.max_length)
    ]
    catalogue_B, sampled_B = (torch.cat(parts) for parts in zip(*ranks, strict=True))
    return Judged(_figures(catalogue_B), _figures(sampled_B))


@torch.inference_mode()
def _ranks(
    network: SASRec, questions: Sequence[Question], candidate_BC: np.ndarray, *, items: int
) -> tuple[Tensor, Tensor]:
    """Among the whole catalogue and among the candidates; 0 is the best."""
    row_BT = _padded([question.history[-network.settings.max_length :] for question in questions])
    target_B = torch.tensor([question.target for question in questions])
    item_RD = network.item_RD[: items + 1]
    hidden_BD = network.encode_last(row_BT)
    live_R = torch.ones(items + 1, dtype=torch.bool)
    owned_BE = _padded([question.history for question in questions])
    among_all_B = rank_of(hidden_BD, item_RD, target_P=target_B, excluded_PE=owned_BE, live_R=live_R)
    return among_all_B, _rank_among(hidden_BD, item_RD, target_B, torch.from_numpy(candidate_BC))


def _rank_among(
    hidden_BD: Float[Tensor, "B D"],
    item_RD: Float[Tensor, "R D"],
    target_B: Int[Tensor, " B"],
    candidate_BC: Int[Tensor, "B C"],
) -> Int[Tensor, " B"]:
    target_score_B = (hidden_BD * item_RD[target_B]).sum(dim=1)
    score_BC = torch.einsum("bd,bcd->bc", hidden_BD, item_RD[candidate_BC])
    return (score_BC >= target_score_B[:, None]).sum(dim=1)


def _by_length(questions: Sequence[Question], max_length: int) -> Iterator[Int[np.ndarray, " _"]]:
    length_B = np.array([min(len(question.history), max_length) for question in questions])
    for group in length_groups(length_B):
        yield from np.split(group, range(USERS_AT_ONCE, len(group), USERS_AT_ONCE))


def _padded(rows: Sequence[Int[np.ndarray, " _"]]) -> Int[Tensor, "B T"]:
    row_BT = np.full((len(rows), max(len(row_T) for row_T in rows)), PADDING, dtype=np.int64)
    for index, row_T in enumerate(rows):
        row_BT[index, row_BT.shape[1] - len(row_T) :] = row_T
    return torch.from_numpy(row_BT)


def _figures(rank_B: Int[Tensor, " B"]) -> Figures:
    return Figures(float(hits(rank_B, k=CUT_OFF).mean()), float(gains(rank_B, k=CUT_OFF).mean()))


def _never_had(row_E: np.ndarray, items: int, rng: np.random.Generator) -> np.ndarray:
    is_other_R = np.ones(items + 1, dtype=np.bool_)
    is_other_R[: PADDING + 1] = False
    is_other_R[row_E] = False
    others = np.flatnonzero(is_other_R)
    if len(others) < CANDIDATES:
        raise ValueError(f"a user has all but {len(others)} of {items} items; the protocol draws {CANDIDATES} others")
    return rng.choice(others, size=CANDIDATES, replace=False)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"no file {path}; give one with the columns user and item in the order of time as --data")
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with path.open() as lines:
        first = lines.readline()
    delimiter = next((mark for mark in "\t, " if mark in first), ",")
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(autogenerate_column_names=True),
        parse_options=csv.ParseOptions(delimiter=delimiter),
    )


def _codes(column: pa.ChunkedArray) -> Int[np.ndarray, " N"]:
    """Numbers from zero, in the order of first appearance."""
    codes: np.ndarray = pc.dictionary_encode(column).combine_chunks().indices.to_numpy()
    return codes.astype(np.int64)
