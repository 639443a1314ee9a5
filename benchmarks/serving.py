"""How many users a second does ranking take, and how long does one user wait, from small catalogues to huge ones?

    .venv/bin/python -m benchmarks.serving [--items 3416 100000 1000000 10000000] [--threads N] [--peers] [--quick]

Ours is what the scoring worker does with a batch of users: their histories to hidden states at the newest item, then
the best of all items without what they had. The textbook is the network of `benchmarks.textbook` at every position,
every slot padded, and a full sort of all scores. faiss is an exact flat index searched with our hidden states. The
floor reads the item table once (one user) or multiplies it (many users), at the rate that torch reaches here. RecTools
is its SASRec's `recommend` in an environment of its own (`benchmarks.peers`), over the smallest catalogue.

Weights are drawn at random: how long exact ranking takes does not depend on them. Rounds of all are interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import msgspec
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.peers import heard
from benchmarks.textbook import TextbookSASRec
from benchmarks.training import LENGTH_DECILES
from deploy.scoring.shelf import Shelf
from deploy.scoring.slates import Query, Slates, Stock
from model.catalogue import PADDING, Catalogue
from model.ranking import top_k
from model.sasrec import SASRec
from model.settings import ModelSettings, PolicySettings
from stream.events import Cause
from stream.packing import pack, unpack

SETTINGS = ModelSettings(max_length=200, units=50, blocks=2, heads=1)
"""The paper's, for MovieLens-1M."""
POLICY = PolicySettings()
ITEMS, QUICK_ITEMS = (3_416, 100_000, 1_000_000, 10_000_000), (3_416, 100_000)
BATCHES = (1, 128, 512)
MOST_AT_ONCE = 200_000_000
"""Scores of a batch; larger batches of larger catalogues gain nothing."""
GOALS = {1: 1 / 0.3, 128: 10.0}
"""How many times the users of the textbook, by batch, over the smallest catalogue."""
MOST_SORTED = 30_000_000
"""Scores that a full sort is asked for at once; beyond, the textbook is left out."""
ROUNDS, QUICK_ROUNDS, ROUND_SECONDS = 200, 30, 2.0
PEER_ROUNDS = 10
FLOOR_ROWS = 1 << 15
MOST_SLATES_ITEMS = 200_000


class Users(NamedTuple):
    """B users."""

    row_BT: Tensor
    """What they had, padded on the left."""
    length_B: np.ndarray
    packed: list[bytes]
    """The same as the scoring worker keeps it."""


class Timed(NamedTuple):
    """One way to rank."""

    name: str
    seconds: np.ndarray
    """Of every round."""


def draw_users(users: int, items: int, rng: np.random.Generator) -> Users:
    """Users with as many items as those of MovieLens-1M, up to what the network looks at."""
    quantile_B = rng.random(users) * (len(LENGTH_DECILES) - 1)
    drawn_B = np.interp(quantile_B, np.arange(len(LENGTH_DECILES)), LENGTH_DECILES)
    length_B = np.minimum(drawn_B.astype(np.int64), SETTINGS.max_length)
    row_BT = np.full((users, SETTINGS.max_length), PADDING, dtype=np.int64)
    for row_T, length in zip(row_BT, length_B, strict=True):
        row_T[SETTINGS.max_length - length :] = rng.integers(1, items, length, endpoint=True)
    packed = [
        pack(tuple(f"i{row}" for row in row_T[-length:].tolist()))
        for row_T, length in zip(row_BT, length_B, strict=True)
    ]
    return Users(torch.from_numpy(row_BT), length_B, packed)


class Ways:
    """Everything that is timed, on one catalogue."""

    def __init__(self, items: int) -> None:
        self.items = items
        generator = torch.Generator().manual_seed(1)
        self._model = SASRec(SETTINGS, capacity=1, generator=generator)
        self._item_RD = torch.randn(items + 1, SETTINGS.units, generator=generator) * 0.1
        self._item_RD[PADDING] = 0.0
        self._model.item_RD = torch.nn.Parameter(self._item_RD, requires_grad=False)
        self._encoder = self._model.encoder()
        self._live_R = torch.ones(items + 1, dtype=torch.bool)
        self._textbook = TextbookSASRec(SETTINGS, rows=1).eval()
        self._textbook.item.weight = torch.nn.Parameter(self._item_RD, requires_grad=False)
        self._flat: faiss.IndexFlatIP | None = None
        self._shelf: Shelf | None = None

    def ours(self, users: Users) -> None:
        """Hidden states at the newest item, the best of all items."""
        hidden_BD = self._encoder.encode_last(users.row_BT)
        top_k(hidden_BD, self._item_RD, k=POLICY.candidates, excluded_BE=users.row_BT, live_R=self._live_R)

    @torch.inference_mode()
    def textbook(self, users: Users) -> None:
        """Every position, every score in order."""
        hidden_BTD = self._textbook(users.row_BT)
        score_BR = hidden_BTD[:, -1] @ self._item_RD.T
        score_BR.scatter_(1, users.row_BT, -torch.inf)
        score_BR.sort(dim=1, descending=True)

    def faiss_flat(self, users: Users) -> None:
        """The same states as ours; what a user had is found too and left out afterwards."""
        if self._flat is None:
            self._flat = faiss.IndexFlatIP(SETTINGS.units)
            self._flat.add(self._item_RD.numpy())
        hidden_BD = self._encoder.encode_last(users.row_BT)
        self._flat.search(hidden_BD.numpy(), POLICY.candidates + SETTINGS.max_length)

    def floor(self, users: Users) -> None:
        """Only the scores, at no one's disposal."""
        hidden_BD = self._item_RD[: len(users.row_BT)] + 1.0
        for start in range(0, len(self._item_RD), FLOOR_ROWS):
            part_CD = self._item_RD[start : start + FLOOR_ROWS]
            if len(hidden_BD) == 1:
                torch.mv(part_CD, hidden_BD[0])
            else:
                torch.mm(hidden_BD, part_CD.T)

    def slates(self, users: Users) -> None:
        """Drawn slates with their propensities, from histories as they are kept to JSON as it is published."""
        if self._shelf is None:
            self._shelf = self._stocked()
        queries = [
            Query(f"u{number}", f"r{number}", CAUSE, unpack(packed), POLICY.slate_size)
            for number, packed in enumerate(users.packed)
        ]
        for slate in self._slates.draw(Stock(self._shelf, now_ms=time.time_ns() // 1_000_000), queries):
            msgspec.json.encode(slate)

    def _stocked(self) -> Shelf:
        catalogue = Catalogue(max_items=self.items, half_life_clicks=1e5)
        for number in range(1, self.items + 1):
            catalogue.admit(f"i{number}")
        self._slates = Slates(POLICY)
        return Shelf(
            catalogue=catalogue,
            live_R=self._live_R.numpy(),
            popularity_R=torch.zeros(self.items + 1),
            network=self._model,
            item_RD=self._item_RD,
        )


CAUSE = Cause(topic="clicks", partition=0, offset=0, arrived_at_ms=0)


def interleaved(ways: Sequence[tuple[str, Callable[[Users], None]]], users: Users, *, rounds: int) -> list[Timed]:
    """Times every way in turn, until the rounds or the time are over; the first round is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    until = time.monotonic() + ROUND_SECONDS * len(ways)
    for number in range(rounds + 1):
        for name, way in ways:
            began = time.perf_counter()
            way(users)
            if number:
                seconds[name].append(time.perf_counter() - began)
        if number > 1 and time.monotonic() > until:
            break
    return [Timed(name, np.array(taken)) for name, taken in seconds.items()]


def seconds_by_rectools(*, rounds: int) -> dict[int, float]:
    """The median of a call, by the number of users."""
    lengths = draw_users(max(BATCHES), ITEMS[0], np.random.default_rng(max(BATCHES))).length_B.tolist()
    settings = {
        **SETTINGS.model_dump(include={"blocks", "heads", "units", "max_length"}),
        "threads": torch.get_num_threads(),
        "items": ITEMS[0],
        "k": POLICY.candidates,
        "rounds": rounds,
        "batches": BATCHES,
        "lengths": lengths,
    }
    script = Path(__file__).with_name("rectools_recommend.py")
    said = msgspec.convert(heard(script, [msgspec.json.encode(settings).decode()]), dict[str, list[float]])
    return {int(users): float(np.median(seconds)) for users, seconds in said.items()}


def rows_of(ways: Ways, *, rounds: int, rectools: dict[int, float]) -> Iterator[Row]:
    """One catalogue, every batch."""
    for batch in (batch for batch in BATCHES if batch * ways.items <= MOST_AT_ONCE or batch == 1):
        users = draw_users(batch, ways.items, np.random.default_rng(batch))
        chosen = [("ours", ways.ours), ("floor", ways.floor), ("faiss flat", ways.faiss_flat)]
        if batch * ways.items <= MOST_SORTED:
            chosen.append(("textbook", ways.textbook))
        if ways.items <= MOST_SLATES_ITEMS:
            chosen.append(("slates", ways.slates))
        timed = interleaved(chosen, users, rounds=rounds)
        if ways.items == ITEMS[0] and batch in rectools:
            timed.append(Timed("RecTools' recommend", np.array([rectools[batch]])))
        yield from _rows_of_batch(ways.items, batch, timed)


def _rows_of_batch(items: int, batch: int, timed: Sequence[Timed]) -> Iterator[Row]:
    found = {one.name: float(np.median(one.seconds)) for one in timed}
    seconds = next(one.seconds for one in timed if one.name == "ours")
    what = f"{items:,} items, {batch} user{'s' if batch > 1 else ''} at once"
    for name in ("textbook", "RecTools' recommend", "faiss flat"):
        if name in found:
            is_judged = (name, items) == ("textbook", ITEMS[0]) and batch in GOALS
            goal = Goal("at least", GOALS[batch]) if is_judged else None
            rates = batch / found["ours"], Baseline(name, batch / found[name])
            yield row(f"{what}: users a second", rates[0], unit="1/s", baseline=rates[1], goal=goal)
    for percent in (50, 99):
        took = float(np.percentile(seconds, percent)) * 1e3
        yield row(f"{what}: p{percent}", took, unit="ms")
    goal = Goal("at least", 0.5, of="ours") if items == 1_000_000 and batch == 1 else None
    yield row(f"{what}: fraction of the floor", found["floor"] / found["ours"], unit="", goal=goal)
    if "slates" in found:
        yield row(f"{what}: whole slates, drawn", batch / found["slates"], unit="1/s")


def main() -> None:
    """Measures and reports."""
    parser = arguments("Users a second, and how long one user waits, over catalogues of many sizes.")
    parser.add_argument("--items", type=int, nargs="+", help="sizes of the catalogue")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, faiss and ours")
    parser.add_argument("--peers", action="store_true", help="beside RecTools, too; its environment is made once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    sizes = options.items or (QUICK_ITEMS if options.quick else ITEMS)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    rectools = seconds_by_rectools(rounds=PEER_ROUNDS) if options.peers else {}
    lines = [line for items in sizes for line in rows_of(Ways(items), rounds=rounds, rectools=rectools)]
    report("serving", lines)


if __name__ == "__main__":
    explained(main)
