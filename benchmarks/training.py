"""How many sequences a second does a training step learn, beside other steps and beside the machine's own rate?

    .venv/bin/python -m benchmarks.training [--data FILE] [--quick] [--without-rectools]

The paper's setting for MovieLens-1M: length 200, 2 blocks, 1 head, 50 units, batches of 128, binary cross-entropy with
one negative, every item of a sequence predicted from those before it. Ours, the step of `benchmarks.textbook` and that
of RecTools (in an environment of its own, made by the first run) learn the same batches in turn, with 1 and 2 threads.
The floor is the time of the matrix products alone, without padding, attention by half (it is causal), at the best rate
that torch reaches here for products of these columns, over several numbers of rows; who beats it shows that it was
measured too low, which is an error. Then a step of every loss, with 256 shared negatives, beside BCE; and
what the optimiser's step costs with a million items. Where torch finds CUDA, our step there as well: by how much it
falls short of products of bfloat16 at the rate that is measured, and the largest batch that fits, both with shapes as
they come and fixed; memory that runs out costs a row, not the report.

`--data` takes a parquet file of (user, item) in time order; without it users have as many items as MovieLens-1M's.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.peers import peer_python
from benchmarks.textbook import TextbookStep
from model.catalogue import PADDING
from model.losses import LOSSES, Positions
from model.negatives import uniform
from model.optimiser import RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings

SETTINGS = ModelSettings(max_length=200, units=50, blocks=2, heads=1, dropout=0.2)
BATCH = 128
LEARNING_RATE = 1e-3
SHARED_NEGATIVES = 256
ROUNDS, QUICK_ROUNDS = 20, 4
WARM_UP = 2
LENGTH_DECILES = [18, 24, 33, 44, 66, 96, 135, 190, 280, 400, 2_300]
"""Items per user of MovieLens-1M, from the shortest to the longest."""
ITEMS = 3_416
FEW_ITEMS, MANY_ITEMS, TOUCHED = 4_000, 1_000_000, 1_000
SYNTHETIC_USERS = 2_000
MOST_SEQUENCES = 65_536
"""Of the batches that are tried on a GPU."""
FINENESS = 16
"""The largest that fits is found to one part in so many."""
ROW_COUNTS = (64, 256, 1_024, 4_096, BATCH * SETTINGS.max_length)
"""Of the products that are timed: from those whose operands stay in the cache to a whole padded batch."""
DEVICE_ROW_COUNTS = (*ROW_COUNTS, 8 * ROW_COUNTS[-1], 64 * ROW_COUNTS[-1])
"""A GPU comes to its rate by larger ones."""
OPERATIONS_TIMED = 50_000_000
"""Floating-point operations between two readings of the clock, or one product where that has more."""
FLOOR, DEVICE_FLOOR = "matrix products alone", "products of bfloat16 alone"
SHORT = "cross_entropy, bfloat16 products:"
"""As by `trainer.softmax_products`."""
Shapes = Literal["as they come", "fixed"]
SHAPES: tuple[Shapes, ...] = ("as they come", "fixed")
"""On a GPU, as by `trainer.network_shapes`."""


class Batch(NamedTuple):
    """B users: items and the item that follows each, padded on the left to the full length."""

    row_BT: Tensor
    target_BT: Tensor
    negative_BT: Tensor


Step = Callable[[Batch], float]
"""Learns a batch and gives back the seconds that this took."""


class Ours:
    """The product's step."""

    def __init__(
        self,
        loss: str,
        *,
        shared_negatives: int | None = None,
        product_kind: torch.dtype | None = None,
        device: str = "cpu",
        shapes: Shapes = "as they come",
    ) -> None:
        self._loss = LOSSES[loss]
        self._kind = product_kind
        self._shared = shared_negatives
        self._rng = np.random.default_rng(1)
        self._sampler = uniform(np.arange(1, ITEMS + 1))
        network = SASRec(SETTINGS, capacity=ITEMS + 1, generator=torch.Generator().manual_seed(1))
        self._model = network.to(torch.device(device))
        self._model.has_short_products = device == "cuda"
        self._model.has_fixed_shapes = shapes == "fixed"
        self._model.reset_rows(np.arange(1, ITEMS + 1), self._rng)
        self._optimiser = RowAdam(self._model, learning_rate=LEARNING_RATE)

    def __call__(self, batch: Batch) -> float:
        """One negative for each position, or some that all share."""
        start = time.perf_counter()
        device = self._model.device
        wanted_BT = batch.target_BT != PADDING
        hidden_PD = self._model.states_at(batch.row_BT.to(device), wanted_BT.to(device), rng=self._rng)
        target_P = batch.target_BT[wanted_BT]
        shape = (len(target_P), 1) if self._shared is None else (self._shared,)
        positions = Positions(
            hidden_PD=hidden_PD,
            target_P=target_P.to(device),
            weight_P=torch.ones(len(target_P), device=device),
            item_RD=self._model.item_RD,
            size=ITEMS + 1,
            negative=self._sampler.draw(shape, self._rng).to(device),
            product_kind=self._kind,
        )
        torch.autograd.backward(self._loss(positions))
        self._optimiser.step()
        _finish(device)
        return time.perf_counter() - start


class Textbook:
    """The baseline's step."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self._step = TextbookStep(SETTINGS, rows=ITEMS + 1, learning_rate=LEARNING_RATE)

    def __call__(self, batch: Batch) -> float:
        """Its negatives are drawn already."""
        start = time.perf_counter()
        self._step(batch.row_BT, batch.target_BT, batch.negative_BT)
        return time.perf_counter() - start


class RecTools:
    """RecTools' step, in a process of its own that sleeps between two steps."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._file = folder / "batch.npz"

    def __call__(self, batch: Batch) -> float:
        """Its negatives are drawn already."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        x, y, negatives = (rows.numpy() for rows in batch)
        np.savez(self._file, x=x, y=y, negatives=negatives[:, :, None])
        print(self._file, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError("RecTools' step ended: see above, or leave it out by --without-rectools")
        return float(answer)


@contextlib.contextmanager
def rectools(*, threads: int) -> Iterator[RecTools]:
    """RecTools' step, until the block ends."""
    settings = SETTINGS.model_dump() | {
        "threads": threads,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "items": ITEMS,
    }
    script = Path(__file__).with_name("rectools_step.py")
    command = [str(peer_python()), "-W", "ignore", str(script), msgspec.json.encode(settings).decode()]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        yield RecTools(process, Path(folder))


def main() -> None:
    """Measures and reports."""
    parser = arguments("sequences a second of a training step")
    parser.add_argument("--data", type=Path, help="parquet of (user, item) in time order")
    parser.add_argument("--without-rectools", action="store_true", help="leave RecTools out")
    options = parser.parse_args()
    sequences = synthetic_sequences() if options.data is None else read_sequences(options.data)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    rows = []
    for threads in (1, 2):
        with contextlib.nullcontext() if options.without_rectools else rectools(threads=threads) as peer:
            rows += beside_others(sequences, peer, threads=threads, rounds=rounds)
    rows += [*between_losses(sequences, rounds=rounds), with_many_items(rounds=rounds)]
    try:
        if torch.cuda.is_available():
            rows.extend(on_device("cuda", sequences, rounds=rounds))
    finally:
        report("training", rows)
    check_floors(rows)


def read_sequences(path: Path) -> list[np.ndarray]:
    """Every user's items as rows 1 to `ITEMS`; rarer ones beyond that are folded onto them."""
    table = pq.read_table(path)
    user_N, item_N = (table.column(index).to_numpy() for index in (0, 1))
    row_N = np.unique(item_N, return_inverse=True)[1] % ITEMS + 1
    order = np.argsort(user_N, kind="stable")
    return np.split(row_N[order], np.flatnonzero(np.diff(user_N[order])) + 1)


def synthetic_sequences() -> list[np.ndarray]:
    """Random items; as many of each user as users of MovieLens-1M have."""
    rng = np.random.default_rng(3)
    shares = np.linspace(0.0, 1.0, len(LENGTH_DECILES))
    lengths = np.interp(rng.random(SYNTHETIC_USERS), shares, LENGTH_DECILES).astype(np.int64)
    return [rng.integers(1, ITEMS + 1, size=length) for length in lengths]


def batches(sequences: list[np.ndarray], *, size: int = BATCH) -> Iterator[Batch]:
    """Random users, for ever."""
    rng = np.random.default_rng(2)
    while True:
        chosen = [sequences[user][-SETTINGS.max_length - 1 :] for user in rng.integers(len(sequences), size=size)]
        whole_BL = np.full((size, SETTINGS.max_length + 1), PADDING)
        for index, items in enumerate(chosen):
            whole_BL[index, -len(items) :] = items
        target_BT = np.where(whole_BL[:, :-1] == PADDING, PADDING, whole_BL[:, 1:])
        negative_BT = rng.integers(1, ITEMS + 1, size=target_BT.shape)
        yield Batch(*map(torch.from_numpy, (whole_BL[:, :-1].copy(), target_BT, negative_BT)))


def interleaved(steps: Mapping[str, Step], sequences: list[np.ndarray], *, rounds: int) -> dict[str, float]:
    """Mean seconds of each step, all of them on the same batches in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index, batch in zip(range(rounds + WARM_UP), batches(sequences), strict=False):
        for name, step in steps.items():
            took = step(batch)
            if index >= WARM_UP:
                seconds[name].append(took)
    return {name: statistics.fmean(times) for name, times in seconds.items()}


def beside_others(sequences: list[np.ndarray], peer: RecTools | None, *, threads: int, rounds: int) -> list[Row]:
    """Ours beside the textbook step, RecTools' and the floor."""
    torch.set_num_threads(threads)
    steps: dict[str, Step] = {"ours": Ours("bce"), "textbook": Textbook()}
    if peer is not None:
        steps["rectools"] = peer
    seconds = interleaved(steps, sequences, rounds=rounds)
    ours = BATCH / seconds["ours"]
    baselines = {"textbook": ("textbook step", 5.0), "rectools": ("RecTools' step", 4.0)}
    what = f"BCE step, {threads} thread{'s' if threads > 1 else ''}"
    rows = [
        row(
            what,
            ours,
            unit="sequences/s",
            baseline=Baseline(baselines[name][0], BATCH / seconds[name]),
            goal=Goal("at least", baselines[name][1]),
        )
        for name in steps
        if name != "ours"
    ]
    floor = Baseline(FLOOR, BATCH / floor_seconds(sequences))
    return [*rows, row(what, ours, unit="sequences/s", baseline=floor, goal=Goal("at least", 0.25))]


def floor_seconds(sequences: list[np.ndarray]) -> float:
    """Time of a batch's matrix products alone, forward and backward."""
    return BATCH * operations(sequences) / product_rate()


def operations(sequences: list[np.ndarray]) -> float:
    """Floating-point operations in the products of a sequence, on average: forward, and twice as many backward."""
    units = SETTINGS.units
    length_N = np.minimum([len(items) - 1 for items in sequences], SETTINGS.max_length)
    dense = 2 * 5 * units**2 * float(length_N.mean())
    attention = 2 * units * float((length_N.astype(np.float64) ** 2).mean())
    return 3 * SETTINGS.blocks * (dense + attention)


def product_rate(
    *, device: str = "cpu", kind: torch.dtype = torch.float32, row_counts: Sequence[int] | None = None
) -> float:
    """Floating-point operations a second of products with as many columns as the network's, at the best row count."""
    chosen = row_counts or (ROW_COUNTS if device == "cpu" else DEVICE_ROW_COUNTS)
    return max(_product_rate(rows, torch.device(device), kind) for rows in chosen)


def _product_rate(rows: int, device: torch.device, kind: torch.dtype) -> float:
    """Into memory that is there already, so often in a row that the clock and the call hardly count."""
    units = SETTINGS.units
    shapes = ((rows, units), (units, 3 * units), (rows, 3 * units))
    left, right, product = (torch.randn(shape, device=device).to(kind) for shape in shapes)
    operations_once = 2 * rows * units * 3 * units
    times = max(1, OPERATIONS_TIMED // operations_once)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=product)
        _finish(device)

    return times * operations_once / min(_seconds(multiply) for _ in range(20))


def check_floors(rows: Sequence[Row]) -> None:
    """Nothing is faster than its own products: where it seems so, the floor is wrong.

    Raises:
        ValueError: a step that beats the products alone.
    """
    for told in rows:
        if told.baseline_name in (FLOOR, DEVICE_FLOOR) and told.ratio is not None and told.ratio > 1.0:
            raise ValueError(
                f"{told.what} reached {told.ratio:.1f} times its floor, the {told.baseline_name}: "
                "that rate was measured too low; measure again with nothing else on the machine"
            )


class Largest(NamedTuple):
    """The largest batch that was seen to fit; 0 where not even the first did."""

    size: int
    is_bounded: bool
    """Larger ones were not tried."""


def largest_that_fits(fits: Callable[[int], bool], *, first: int, most: int) -> Largest:
    """Found by doubling, and between the last two sizes by halving, to a sixteenth of it; no more than `most`."""
    if not fits(first):
        return Largest(0, is_bounded=False)
    size = first
    while size < most:
        larger = min(2 * size, most)
        if not fits(larger):
            return Largest(_largest_between(fits, size, larger), is_bounded=False)
        size = larger
    return Largest(size, is_bounded=True)


def _largest_between(fits: Callable[[int], bool], fitting: int, too_large: int) -> int:
    while too_large - fitting > max(1, fitting // FINENESS):
        middle = (fitting + too_large) // 2
        if fits(middle):
            fitting = middle
        else:
            too_large = middle
    return fitting


def on_device(device: str, sequences: list[np.ndarray], *, rounds: int, most: int = MOST_SEQUENCES) -> Iterator[Row]:
    """A step with one negative on a GPU: at the paper's batch and at the largest that fits, of at most so many.

    What does not fit after all is told as such, and the others go on.
    """
    rate = product_rate(device=device, kind=torch.bfloat16)
    floor = Baseline(DEVICE_FLOOR, rate / operations(sequences))
    for shapes in SHAPES:
        fits = functools.partial(_fits, device, sequences, shapes)
        largest = largest_that_fits(fits, first=BATCH, most=most)
        bound = "at least, " if largest.is_bounded else ""
        yield row(f"largest batch that fits, {bound}{device}, shapes {shapes}", largest.size, unit="sequences")
        for batch in sorted({BATCH, largest.size} - {0}):
            what = f"BCE step of {batch:,} on {device}, shapes {shapes}"
            try:
                seconds = _step_seconds(device, sequences, shapes, batch, rounds=rounds)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                what, seconds = f"{what}: out of memory", math.nan
            _free(device)
            yield row(what, batch / seconds, unit="sequences/s", baseline=floor)


def _step_seconds(device: str, sequences: list[np.ndarray], shapes: Shapes, batch: int, *, rounds: int) -> float:
    """Every shape is compiled when it is first met: as many steps again before those that count."""
    step = Ours("bce", device=device, shapes=shapes)
    learnt = batches(sequences, size=batch)
    return statistics.median([step(next(learnt)) for _ in range(2 * rounds + WARM_UP)][rounds + WARM_UP :])


def _fits(device: str, sequences: list[np.ndarray], shapes: Shapes, size: int) -> bool:
    """Whether a few batches of so many can be learnt; they are of unlike lengths."""
    try:
        _step_seconds(device, sequences, shapes, size, rounds=1)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return False
    finally:
        _free(device)
    return True


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also where the compiler or the library of products only passes it on."""
    if error is None:
        return False
    is_so = isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
    return is_so or _is_out_of_memory(error.__cause__)


def _free(device: str) -> None:
    """What the last step left behind must not be in the way of the next."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _finish(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def between_losses(sequences: list[np.ndarray], *, rounds: int) -> list[Row]:
    """A step of every loss beside BCE's with one negative."""
    torch.set_num_threads(1)
    steps: dict[str, Step] = {"plain": Ours("bce")}
    steps |= {loss: Ours(loss, shared_negatives=SHARED_NEGATIVES) for loss in LOSSES}
    steps[SHORT] = Ours("cross_entropy", product_kind=torch.bfloat16)
    seconds = interleaved(steps, sequences, rounds=max(2, rounds // 2))
    plain = Baseline("BCE, one negative", 1e3 * seconds["plain"])
    goals = dict.fromkeys(("cross_entropy", SHORT), Goal("at most", 1.8))
    return [
        row(f"{loss} step, 1 thread", 1e3 * seconds[loss], unit="ms", baseline=plain, goal=goals.get(loss))
        for loss in (*LOSSES, SHORT)
    ]


def with_many_items(*, rounds: int) -> Row:
    """The optimiser's step on the same 1,000 rows, of many items and of few."""
    torch.set_num_threads(1)
    seconds = {items: _optimiser_seconds(items, rounds=rounds) for items in (FEW_ITEMS, MANY_ITEMS)}
    return row(
        f"optimiser's step on {TOUCHED:,} rows of {MANY_ITEMS:,}, 1 thread",
        1e3 * seconds[MANY_ITEMS],
        unit="ms",
        baseline=Baseline(f"of {FEW_ITEMS:,}", 1e3 * seconds[FEW_ITEMS]),
        goal=Goal("at most", 2.0),
    )


def _optimiser_seconds(items: int, *, rounds: int) -> float:
    model = SASRec(SETTINGS, capacity=items + 1, generator=torch.Generator().manual_seed(1))
    optimiser = RowAdam(model, learning_rate=LEARNING_RATE)
    rng = np.random.default_rng(1)
    # Every row has been written once, as where items are learnt: untouched memory is not even there yet.
    model.reset_rows(np.arange(1, items + 1), rng)
    optimiser.reset_rows(np.arange(1, items + 1))
    seconds = []
    for _ in range(5 * rounds + WARM_UP):
        row_U = torch.from_numpy(rng.choice(items, size=TOUCHED, replace=False) + 1)
        touched_UD = functional.embedding(row_U, model.item_RD, sparse=True)
        torch.autograd.backward(touched_UD.sum() + sum(weight.sum() for weight in model.blocks.parameters()))
        seconds.append(_seconds(optimiser.step))
    return statistics.median(seconds[WARM_UP:])


if __name__ == "__main__":
    explained(main)
