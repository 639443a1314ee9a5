"""What does the approximate index find, and how much sooner than scoring every item?

    .venv/bin/python -m benchmarks.index [--items N] [--folder FOLDER] [--seconds CPU_SECONDS] [--quick]

The catalogue is one that was learnt (`benchmarks.large`); `--folder` keeps it for the next run. Users whom it was not
learnt from are searched for one by one and together, exactly, through our index, and through faiss's inverted lists of
the same number (which keep a copy of the vectors). Recall counts how many of the exact best are found; what is found is
scored exactly, so the order is right. Then part of the rows changes, as training changes them, and the index follows.
Vectors drawn at random stand at the end as what they are: nothing that any index could find.

Time is processor time of one thread, the median over users.
"""

from __future__ import annotations

import dataclasses
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.large import Large, kept
from deploy.scoring.indexing import Indexing
from deploy.settings import ScoringSettings
from model.catalogue import PADDING
from model.index import FILED_AT_ONCE, Index
from model.ranking import TopK, top_k

ITEMS, QUICK_ITEMS = 1_000_000, 20_000
CPU_SECONDS, QUICK_CPU_SECONDS = 120.0, 10.0
CANDIDATES, SHOWN = 200, 10
SEARCHED_ALONE, SEARCHED_TOGETHER = 100, 128
SHARES = (0.01, 0.02, 0.04, 0.1)
MOVED_SHARE, MOVED_BY = 0.02, 0.3
"""Of the rows that change between two looks, and by how much of their length."""


class Task(NamedTuple):
    """Users to be searched for in a table."""

    hidden_BD: Tensor
    item_RD: Tensor
    had_BE: Tensor
    live_R: Tensor

    def some(self, users: slice) -> Task:
        """The same for these users."""
        return self._replace(hidden_BD=self.hidden_BD[users], had_BE=self.had_BE[users])


Way = Callable[[Task], Tensor]
"""To find the rows of the best, B x K."""


def exactly(task: Task) -> Tensor:
    """Every item is scored."""
    return _rows(top_k(task.hidden_BD, task.item_RD, k=CANDIDATES, excluded_BE=task.had_BE, live_R=task.live_R))


def through(index: Index) -> Way:
    """Ours."""

    def found(task: Task) -> Tensor:
        return _rows(
            index.search(task.hidden_BD, task.item_RD, k=CANDIDATES, excluded_BE=task.had_BE, live_R=task.live_R)
        )

    return found


def through_faiss(item_RD: Tensor, *, lists: int, probes: int) -> Way:
    """Inverted lists by inner product; what a user had is found too, and left out by whoever asked."""
    quantizer = faiss.IndexFlatL2(item_RD.shape[1])
    inverted = faiss.IndexIVFFlat(quantizer, item_RD.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(1).choice(np.arange(1, len(item_RD)), size=min(len(item_RD) - 1, 40 * lists))
    inverted.cp.niter = 6
    inverted.train(item_RD[torch.from_numpy(sample)].numpy())
    inverted.add(item_RD.numpy())
    inverted.nprobe = probes

    def found(task: Task) -> Tensor:
        _, row_BK = inverted.search(task.hidden_BD.numpy(), CANDIDATES + task.had_BE.shape[1])
        return torch.from_numpy(row_BK)

    return found


def _rows(best: TopK) -> Tensor:
    return best.row_BK


def recall(found_BK: Tensor, exact_BK: Tensor, *, of: int) -> float:
    """The share of the `of` best that are among what was found."""
    hits = [
        torch.isin(exact_K[:of], found_K).double().mean() for found_K, exact_K in zip(found_BK, exact_BK, strict=True)
    ]
    return float(torch.stack(hits).mean())


def milliseconds(way: Way, task: Task) -> float:
    """Processor time, user by user: the median."""
    way(task.some(slice(0, 1)))
    taken = []
    for user in range(min(SEARCHED_ALONE, len(task.hidden_BD))):
        began = time.process_time()
        way(task.some(slice(user, user + 1)))
        taken.append(time.process_time() - began)
    return float(np.median(taken)) * 1e3


def rows_of(large: Large) -> Iterator[Row]:
    """The whole comparison on a learnt catalogue."""
    item_RD = large.network.item_RD.detach()
    history_BT, next_B = large.row_BT[:, :-1], large.row_BT[:, -1]
    task = Task(
        large.network.encode_last(history_BT).clone(), item_RD, history_BT, torch.arange(len(item_RD)) != PADDING
    )
    exact_BK = exactly(task)
    yield row("items", len(item_RD) - 1, unit="")
    yield row("clicks that they were learnt from", large.clicks, unit="")
    yield row("processor time of that", large.cpu_seconds, unit="s")
    hits = (exact_BK[:, :SHOWN] == next_B[:, None]).any(dim=1).double().mean()
    yield row("HR@10 of the click after, over all items", float(hits), unit="")
    yield row(f"different items in {len(exact_BK)} users' best 10", len(torch.unique(exact_BK[:, :SHOWN])), unit="")
    began = time.process_time()
    index = Indexing(from_items=1, share=1.0).index_for(item_RD, before=None, changed=None)
    assert index is not None
    yield row("building the index", time.process_time() - began, unit="CPU-s")
    yield from _searches(task, index, exact_BK)
    yield from _follows(task, index)


def _searches(task: Task, index: Index, exact_BK: Tensor) -> Iterator[Row]:
    lists, alone_ms = len(index.centre_LD), milliseconds(exactly, task)
    together = task.some(slice(0, SEARCHED_TOGETHER))
    together_ms = _together(exactly, together)
    inverted = {share: through_faiss(task.item_RD, lists=lists, probes=round(share * lists)) for share in SHARES[2:3]}
    for share in SHARES:
        ours = through(dataclasses.replace(index, probes=max(1, round(share * lists))))
        is_default = share == ScoringSettings().index_share
        what = f"{share:.0%} of {lists} lists"
        found_BK = ours(task)
        goal = Goal("at least", 0.95, of="ours") if is_default else None
        yield row(f"{what}: recall@10", recall(found_BK, exact_BK, of=SHOWN), unit="", goal=goal)
        yield row(f"{what}: recall@{CANDIDATES}", recall(found_BK, exact_BK, of=CANDIDATES), unit="")
        rate = Baseline("every item scored", 1e3 / alone_ms)
        goal = Goal("at least", 5.0) if is_default else None
        yield row(f"{what}: one user", 1e3 / milliseconds(ours, task), unit="users/CPU-s", baseline=rate, goal=goal)
        users = len(together.hidden_BD)
        rate = Baseline("every item scored", 1e3 * users / together_ms)
        yield row(
            f"{what}: {users} at once", 1e3 * users / _together(ours, together), unit="users/CPU-s", baseline=rate
        )
        if share in inverted:
            other = inverted[share]
            rate = Baseline("every item scored", 1e3 / alone_ms)
            yield row(
                "the same by faiss IVFFlat: one user",
                1e3 / milliseconds(other, task),
                unit="users/CPU-s",
                baseline=rate,
            )
            yield row("the same by faiss IVFFlat: recall@10", recall(other(task), exact_BK, of=SHOWN), unit="")


def _together(way: Way, task: Task) -> float:
    taken = []
    for _ in range(4):
        began = time.process_time()
        way(task)
        taken.append(time.process_time() - began)
    return float(np.median(taken[1:])) * 1e3


def _follows(task: Task, index: Index) -> Iterator[Row]:
    """Rows move, some of them into another item's place; the index of before, and after it followed."""
    generator, rng = torch.Generator().manual_seed(2), np.random.default_rng(2)
    rows = len(task.item_RD)
    moved_X = rng.choice(np.arange(1, rows), size=int(MOVED_SHARE * rows), replace=False)
    placed_W = moved_X[: len(moved_X) // 20]
    now_RD = task.item_RD.clone()
    length_X1 = now_RD[moved_X].norm(dim=1, keepdim=True)
    noise_XD = torch.randn(len(moved_X), now_RD.shape[1], generator=generator)
    now_RD[moved_X] += MOVED_BY * length_X1 * noise_XD / now_RD.shape[1] ** 0.5
    now_RD[placed_W] = task.item_RD[rng.permutation(placed_W)]
    later = task._replace(item_RD=now_RD)
    exact_BK = exactly(later)
    index = dataclasses.replace(index, probes=max(1, round(ScoringSettings().index_share * len(index.centre_LD))))
    yield row(
        f"{len(moved_X):,} rows moved: recall@10, index as it was",
        recall(through(index)(later), exact_BK, of=SHOWN),
        unit="",
    )
    taken, turns = [], 0
    nothing = np.empty(0, dtype=np.int64)
    while turns == 0 or index.stale_R.any():
        began = time.process_time()
        index = index.followed(
            now_RD, changed_X=moved_X if not turns else nothing, placed_W=placed_W if not turns else nothing
        )
        taken.append(time.process_time() - began)
        turns += 1
    yield row(
        f"the same: after it followed, {turns} versions of {FILED_AT_ONCE:,} rows",
        recall(through(index)(later), exact_BK, of=SHOWN),
        unit="",
    )
    yield row("following one version, at most", max(taken) * 1e3, unit="CPU-ms")


def at_random(items: int) -> Iterator[Row]:
    """The negative."""
    generator = torch.Generator().manual_seed(3)
    item_RD, hidden_BD = torch.randn(items + 1, 64, generator=generator), torch.randn(64, 64, generator=generator)
    task = Task(hidden_BD, item_RD, torch.zeros(64, 1, dtype=torch.int64), torch.arange(items + 1) != PADDING)
    index = Indexing(from_items=1, share=ScoringSettings().index_share).index_for(item_RD, before=None, changed=None)
    assert index is not None
    yield row(
        f"{items:,} vectors drawn at random: recall@10", recall(through(index)(task), exactly(task), of=SHOWN), unit=""
    )


def main() -> None:
    """Learns where nothing is kept, measures and reports."""
    parser = arguments("What an approximate index finds in a learnt catalogue, and how much sooner.")
    parser.add_argument("--items", type=int, help=f"of the catalogue; {ITEMS:,}, quick {QUICK_ITEMS:,}")
    parser.add_argument("--folder", type=Path, help="where the learnt catalogue is kept; else it is learnt anew")
    parser.add_argument("--seconds", type=float, help=f"of learning; {CPU_SECONDS:g}, quick {QUICK_CPU_SECONDS:g}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    items = options.items or (QUICK_ITEMS if options.quick else ITEMS)
    seconds = options.seconds or (QUICK_CPU_SECONDS if options.quick else CPU_SECONDS)
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        large = kept(items, options.folder or Path(folder), seconds=seconds, stop=stop)
        report("index", [*rows_of(large), *at_random(min(items, QUICK_ITEMS * 5))])


if __name__ == "__main__":
    explained(main)
