"""Where the row of an item begins that is seen for the first time: what is it worth, and worth what?

    .venv/bin/python -m benchmarks.newcomers FILE [--titles FILE] [--clicks N] [--seeds N]

FILE is a log as `sasrec-stream replay` takes it; its clicks are learnt once each in the order of the log, each
predicted before it is learnt, and the second half is judged. A new row begins at random (the baseline); at the mean of
the items beside it, as the trainer does it; at that mean weighed by how popular each neighbour is, or by how unpopular,
or made as long as its neighbours are; or at the mean of the items whose titles and genres are nearest (`--titles`, a
parquet file of item_id, title, genres: words by inverse document frequency), alone, half and half, or where nothing
stood beside it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.common import Baseline, Row, arguments, explained, report, row
from benchmarks.incremental import Foreseen, clicks_of
from model.catalogue import PADDING, Catalogue
from model.sasrec import SASRec
from model.settings import ModelSettings
from stream.examples import ClickExample
from trainer.learner import Learner
from trainer.newcomers import MOST_NEIGHBOURS, neighbours_of
from trainer.settings import TrainerSettings

CLICKS, SEEDS = 60_000, 2
AT_RANDOM = "at random"


class Newcomer(NamedTuple):
    """An item that has just got a row, and what stood beside it."""

    item_id: str
    neighbours: Sequence[str]


Beginning = Callable[[SASRec, Catalogue, Newcomer], Tensor | None]
"""What is added to the random row of a newcomer (D units), if anything."""


class Beginner(Learner):
    """A learner whose new rows begin as they are told."""

    begin: Beginning

    @torch.no_grad()
    def admit(self, item_ids: Iterable[str], *, sequences: Sequence[Sequence[str]] = ()) -> None:
        """All beginnings look at the table as it was before any of them."""
        item_ids = list(item_ids)
        new = [item_id for item_id in item_ids if self.catalogue.row_of(item_id) == PADDING]
        super().admit(item_ids, sequences=sequences)
        around = neighbours_of(new, sequences)
        begun = {
            self.catalogue.row_of(item_id): self.begin(
                self.network, self.catalogue, Newcomer(item_id, around.get(item_id, ()))
            )
            for item_id in new
        }
        for place, start_D in begun.items():
            if start_D is not None:
                self.network.item_RD[place] += start_D


def at_random(_network: SASRec, _catalogue: Catalogue, _new: Newcomer) -> Tensor | None:
    """Nothing is added."""
    return None


def neighbours(power: float = 0.0, *, as_long: bool = False) -> Beginning:
    """The mean of those beside it, each weighed by its recent clicks to a power; perhaps made as long as they are."""

    def begin(network: SASRec, catalogue: Catalogue, new: Newcomer) -> Tensor | None:
        rows = catalogue.rows_of(new.neighbours)
        rows = rows[rows != PADDING]
        if len(rows) == 0:
            return None
        weight_N = torch.from_numpy((catalogue.recent_click_counts()[rows] + 1.0) ** power).to(torch.float32)
        near_ND = network.item_RD[torch.from_numpy(rows)]
        mean_D: Tensor = (weight_N[:, None] * near_ND).sum(0) / weight_N.sum()
        return mean_D * (near_ND.norm(dim=1).mean() / mean_D.norm().clamp_min(1e-6)) if as_long else mean_D

    return begin


class Titles:
    """Which items are called alike: words of titles, genres and half decades, by inverse document frequency."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        frequency = Counter(word for of_item in words.values() for word in set(of_item))
        place = {word: index for index, word in enumerate(frequency)}
        self._ids = list(words)
        self._place = {item_id: index for index, item_id in enumerate(self._ids)}
        self._word_IW: Float[np.ndarray, "I W"] = np.zeros((len(words), len(place)), dtype=np.float32)
        for index, of_item in enumerate(words.values()):
            for word in set(of_item):
                self._word_IW[index, place[word]] = np.log(len(words) / frequency[word])
        self._word_IW /= np.maximum(np.linalg.norm(self._word_IW, axis=1, keepdims=True), 1e-6)

    @classmethod
    def read(cls, path: Path) -> Titles:
        """From a parquet file of item_id, title and genres."""
        return cls({item_id: words_of(title, genres) for item_id, title, genres in _rows_of(path)})

    def begin(self, network: SASRec, catalogue: Catalogue, new: Newcomer) -> Tensor | None:
        """The mean of the items that are called most like it, weighed by how much."""
        index = self._place.get(new.item_id)
        if index is None:
            return None
        is_word_W = self._word_IW[index] > 0
        likeness_I = self._word_IW[:, is_word_W] @ self._word_IW[index, is_word_W]
        row_I = catalogue.rows_of(self._ids)
        likeness_I[(row_I == PADDING) | (row_I == catalogue.row_of(new.item_id))] = 0.0
        best = np.argsort(-likeness_I, kind="stable")[:MOST_NEIGHBOURS]
        best = best[likeness_I[best] > 0]
        if len(best) == 0:
            return None
        weight_N = torch.from_numpy(likeness_I[best])
        mean_D: Tensor = (weight_N[:, None] * network.item_RD[torch.from_numpy(row_I[best])]).sum(0) / weight_N.sum()
        return mean_D


def words_of(title: str, genres: str) -> list[str]:
    """What a title says: its words, each genre, and the half decade of the year in brackets."""
    years = re.findall(r"\((\d{4})\)", title)
    found = [word for word in re.findall(r"[a-z]+", title.lower()) if len(word) > len("of")]
    return found + [f"genre {genre}" for genre in genres.split("|")] + [f"about {int(year) // 5 * 5}" for year in years]


def _rows_of(path: Path) -> Iterator[tuple[str, str, str]]:
    table = pq.read_table(path, columns=["item_id", "title", "genres"])
    for item_id, title, genres in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        yield str(item_id), title, genres if isinstance(genres, str) else "|".join(genres)


def half_and_half(one: Beginning, other: Beginning) -> Beginning:
    """The mean of two beginnings, or the only one that there is."""

    def begin(network: SASRec, catalogue: Catalogue, new: Newcomer) -> Tensor | None:
        found = [start_D for start_D in (way(network, catalogue, new) for way in (one, other)) if start_D is not None]
        return torch.stack(found).mean(0) if found else None

    return begin


def otherwise(one: Beginning, other: Beginning) -> Beginning:
    """The other where the one has nothing to say."""

    def begin(network: SASRec, catalogue: Catalogue, new: Newcomer) -> Tensor | None:
        start_D = one(network, catalogue, new)
        return other(network, catalogue, new) if start_D is None else start_D

    return begin


def beginnings(titles: Titles | None) -> dict[str, Beginning]:
    """By name; those by titles only where there are some."""
    beside = neighbours()
    found = {
        AT_RANDOM: at_random,
        "neighbours' mean": beside,
        "popular neighbours more": neighbours(1.0),
        "popular neighbours less": neighbours(-1.0),
        "as long as neighbours": neighbours(as_long=True),
    }
    if titles is not None:
        found |= {
            "titles": titles.begin,
            "neighbours and titles": half_and_half(beside, titles.begin),
            "neighbours, else titles": otherwise(beside, titles.begin),
        }
    return found


def learnt(examples: Sequence[ClickExample], begin: Beginning, *, seed: int) -> tuple[float, float]:
    """HR@10 and NDCG@10 of the second half, each click before it was learnt."""
    settings = TrainerSettings(seed=seed, new_rows="random")
    settings = settings.model_copy(update={"predicted_clicks": settings.max_batch})
    learner, foreseen, size = Beginner(ModelSettings(), settings), Foreseen(), settings.max_batch
    learner.begin = begin
    for start in range(0, len(examples), size):
        if start <= len(examples) // 2 < start + size:
            foreseen.add(learner, sign=-1)
        learner.learn(examples[start : start + size])
    foreseen.add(learner)
    outcome = foreseen.outcome(len(examples), 0.0)
    return outcome.hr10, outcome.ndcg10


def rows_of(found: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[Row]:
    """Means over the seeds beside a random beginning, and how far the seeds lie apart."""
    for which, title in enumerate(("HR@10", "NDCG@10")):
        random = mean(each[which] for each in found[AT_RANDOM])
        for name, outcomes in found.items():
            of_seeds = [each[which] for each in outcomes]
            yield row(f"{name}: {title}", mean(of_seeds), unit="", baseline=Baseline(AT_RANDOM, random))
            yield row(f"{name}: the same, seeds apart", max(of_seeds) - min(of_seeds), unit="")


def main() -> None:
    """Learns by each beginning and seed, reports."""
    options = _options()
    torch.set_num_threads(1)
    examples = clicks_of(options.file, options.clicks)
    ways = beginnings(Titles.read(options.titles) if options.titles else None)
    found = {
        name: [learnt(examples, begin, seed=seed) for seed in range(1, options.seeds + 1)]
        for name, begin in ways.items()
    }
    report("newcomers", list(rows_of(found)))


def _options() -> argparse.Namespace:
    parser = arguments((__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--titles", type=Path, metavar="FILE", help="parquet of item_id, title, genres")
    parser.add_argument("--clicks", type=int, default=CLICKS, metavar="N")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    explained(main)
