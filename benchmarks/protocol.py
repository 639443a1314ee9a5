"""Leave one out: every user's last item is the test, the one before it the validation, the rest is for learning.

Shapes: B users, R rows of the item table, T positions, E items that a user has, C candidates.

As published for SASRec: at test time the history includes the validation item, at validation time it does not; nothing
is learnt from either. Two ways to rank the item that came next, neither among items that the user already has:

- among the whole catalogue, which is what a recommender has to do;
- among 100 drawn items (Kang & McAuley 2018, section 4.3), the same ones for every model: for comparison with the
  paper's table, and flattering (Krichene & Rendle 2020). Left out where some user lacks fewer than 100 items.

Ties count against the model.
"""

from __future__ import annotations

import hashlib
import re
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
_MARKS = re.compile("::|[\t;|,]")
"""What may part the columns of a text; failing these, a space."""
_QUOTED = re.compile('"[^"]*"')
_UNIT = "\x1f"
"""Stands in for a mark of two characters."""
_WHO = "user|member|customer|visitor|session|reviewer|uid|sid"
_WHAT = "item|movie|product|article|track|song|artist|book|video|business|asin|iid|mid"
_HEADING = tuple(
    re.compile(rf"({word})s?[ _-]?(id|index|idx|key|name|number|no)?(:\w+)?", re.IGNORECASE) for word in (_WHO, _WHAT)
)

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

    def candidates(self) -> Int[np.ndarray, "B C"] | None:
        """For each question, drawn once and for all: items that the user never has, the test item included.

        None where a user lacks too few.
        """
        rng = np.random.default_rng(CANDIDATE_SEED)
        tested = [row_E for row_E in self.sequences if len(row_E) >= SHORTEST]
        if self.items - max(len(np.unique(row_E)) for row_E in tested) < CANDIDATES:
            return None
        return np.stack([_never_had(row_E, self.items, rng) for row_E in tested])


def read_split(path: Path) -> Split:
    """The first two columns of a file, user and item, in the order of time; parquet, or text with one pair a line.

    A text's columns may be parted by tab, comma, semicolon, bar, `::` or space. Its first line is a heading where it
    names a user and an item, or is the only one without a number; a column of time is not looked at.

    Raises:
        ValueError: a file that is not there, has no two columns, lacks a cell, or has nothing to learn or to test.
    """
    table = _read(path)
    if table.num_columns < 2:
        raise ValueError(f"{path} has one column; two are needed, user and item, in the order of time")
    for name, column in zip(("user", "item"), table.columns, strict=False):
        _check_cells(path, name, column)
    user_N, item_N = (_codes(table.column(index)) for index in (0, 1))
    order_N = np.argsort(user_N, kind="stable")
    row_N = item_N[order_N] + PADDING + 1
    sequences = np.split(row_N, np.flatnonzero(np.diff(user_N[order_N])) + 1)
    split = Split(sequences, int(row_N.max()))
    _check_lengths(path, split)
    return split


def judge(network: SASRec, split: Split, held: Held, *, candidate_BC: Int[np.ndarray, "B C"] | None) -> Judged:
    """How well the network foresees what was held back; among candidates only where there are any."""
    questions = split.questions(held)
    among_all, among_some = [], []
    for part in _by_length(questions, network.settings.max_length):
        asked = _asked(network, [questions[index] for index in part], items=split.items)
        among_all.append(_rank_among_all(asked))
        if candidate_BC is not None:
            among_some.append(_rank_among(asked, torch.from_numpy(candidate_BC[part])))
    return Judged(_figures(torch.cat(among_all)), _figures(torch.cat(among_some)) if among_some else None)


class _Asked(NamedTuple):
    """What the network makes of some histories."""

    hidden_BD: Float[Tensor, "B D"]
    item_RD: Float[Tensor, "R D"]
    target_B: Int[Tensor, " B"]
    owned_BE: Int[Tensor, "B E"]


@torch.inference_mode()
def _asked(network: SASRec, questions: Sequence[Question], *, items: int) -> _Asked:
    row_BT = _padded([question.history[-network.settings.max_length :] for question in questions])
    return _Asked(
        hidden_BD=network.encode_last(row_BT),
        item_RD=network.item_RD[: items + 1],
        target_B=torch.tensor([question.target for question in questions]),
        owned_BE=_padded([question.history for question in questions]),
    )


@torch.inference_mode()
def _rank_among_all(asked: _Asked) -> Int[Tensor, " B"]:
    """Among the items that a user does not have; 0 is the best."""
    return rank_of(
        asked.hidden_BD,
        asked.item_RD,
        target_P=asked.target_B,
        excluded_PE=asked.owned_BE,
        live_R=torch.ones(len(asked.item_RD), dtype=torch.bool),
    )


@torch.inference_mode()
def _rank_among(asked: _Asked, candidate_BC: Int[Tensor, "B C"]) -> Int[Tensor, " B"]:
    target_score_B = (asked.hidden_BD * asked.item_RD[asked.target_B]).sum(dim=1)
    score_BC = torch.einsum("bd,bcd->bc", asked.hidden_BD, asked.item_RD[candidate_BC])
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
    return rng.choice(np.flatnonzero(is_other_R), size=CANDIDATES, replace=False)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"no file {path}; give one with the columns user and item in the order of time as --data")
    table = pq.read_table(path) if path.suffix == ".parquet" else _read_text(path)
    if not table.num_rows:
        raise ValueError(f"{path} is empty; user and item are needed, one pair a line, in the order of time")
    return table


def _read_text(path: Path) -> pa.Table:
    """Its first two columns, or its only one, as text and without a heading."""
    with path.open("rb") as lines:
        first = lines.readline().decode(errors="replace")
    if not first:
        return pa.table({"user": pa.array([], pa.string())})
    found = _MARKS.search(_QUOTED.sub("", first))
    mark = found.group() if found else " "
    names = [f"f{column}" for column in range(min(2, first.count(mark) + 1))]
    table = csv.read_csv(
        _with_single_marks(path, mark),
        read_options=csv.ReadOptions(autogenerate_column_names=True),
        parse_options=csv.ParseOptions(delimiter=mark if len(mark) == 1 else _UNIT),
        convert_options=csv.ConvertOptions(
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table.slice(1) if _has_heading(table) else table


def _with_single_marks(path: Path, mark: str) -> Path | pa.BufferReader:
    """The reader takes no mark of two characters."""
    if len(mark) == 1:
        return path
    return pa.BufferReader(path.read_bytes().replace(mark.encode(), _UNIT.encode()))


def _has_heading(table: pa.Table) -> bool:
    first = [column[0].as_py() or "" for column in table.columns]
    if len(first) == len(_HEADING) and all(
        word.fullmatch(cell.strip()) for word, cell in zip(_HEADING, first, strict=True)
    ):
        return True
    return table.num_rows > 1 and any(
        not _are_numbers(column.slice(0, 1)) and _are_numbers(column.slice(1)) for column in table.columns
    )


def _are_numbers(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(column.drop_null(), r"^\s*[0-9]+\s*$")).as_py())


def _check_cells(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """None may be empty: who that is, or what, nobody can tell."""
    is_empty = pc.is_null(column, nan_is_null=True)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        is_empty = pc.equal(pc.fill_null(column, ""), "")
    row = pc.index(is_empty, True).as_py()
    if row >= 0:
        raise ValueError(f"{path} has no {name} in row {row + 1}; leave such rows out, or fill them in")


def _check_lengths(path: Path, split: Split) -> None:
    """Somebody must be tested, and something be learnt."""
    if all(len(row_E) < SHORTEST for row_E in split.sequences):
        raise ValueError(
            f"no user of {path} has {SHORTEST} items, one to learn, one to say when to stop and one to test: "
            "give a file with longer histories, its rows in the order of time and not cut"
        )
    if all(len(row_E) < 2 for row_E in split.training()):
        raise ValueError(
            f"no user of {path} has {SHORTEST + 1} items, and of fewer no item is learnt that follows another: "
            "give a file with longer histories"
        )


def _codes(column: pa.ChunkedArray) -> Int[np.ndarray, " N"]:
    """Numbers from zero, in the order of first appearance."""
    codes: np.ndarray = pc.dictionary_encode(column).combine_chunks().indices.to_numpy()
    return codes.astype(np.int64)
