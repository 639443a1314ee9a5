"""The training benchmark's own arithmetic, and the part for GPUs on the device that is always there."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks import training
from benchmarks.common import Baseline, row


def test_the_floor_counts_five_square_products_a_position_and_causal_attention() -> None:
    units, blocks = training.SETTINGS.units, training.SETTINGS.blocks
    forward = blocks * (10 * 2 * 5 * units**2 + 2 * units * 10**2)

    assert training.operations([np.arange(11)]) == pytest.approx(3 * forward)


def test_a_device_is_measured_at_the_papers_batch_and_at_the_largest_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "ROW_COUNTS", (64,))
    monkeypatch.setattr(training, "OPERATIONS_TIMED", 1)
    sequences = training.synthetic_sequences()[:20]

    rows = list(training.on_device("cpu", sequences, rounds=1, most=8))

    assert [row.what for row in rows] == [
        "largest batch that fits, at least, cpu, shapes as they come",
        "BCE step of 4 on cpu, shapes as they come",
        "BCE step of 8 on cpu, shapes as they come",
        "largest batch that fits, at least, cpu, shapes fixed",
        "BCE step of 4 on cpu, shapes fixed",
        "BCE step of 8 on cpu, shapes fixed",
    ]
    assert [row.ours for row in rows if row.unit == "sequences"] == [8, 8]
    assert all(row.ours > 0 for row in rows)


class SmallMemory:
    """A step that has memory for so many sequences, by the way of computing."""

    room: ClassVar[dict[training.Shapes, int]] = {"as they come": 150, "fixed": 3}

    def __init__(self, loss: str, *, device: str, shapes: training.Shapes) -> None:
        self._room = self.room[shapes]

    def __call__(self, batch: training.Batch) -> float:
        if len(batch.row_BT) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0


def test_memory_that_runs_out_costs_a_row_and_not_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "Ours", SmallMemory)
    sequences = training.synthetic_sequences()[:20]

    told = {row.what: row.ours for row in training.on_device("cpu", sequences, rounds=1, most=1_000)}

    largest = told["largest batch that fits, cpu, shapes as they come"]
    assert 150 * 15 / 16 <= largest <= 150
    assert told[f"BCE step of {largest:,} on cpu, shapes as they come"] == largest
    assert told["largest batch that fits, cpu, shapes fixed"] == 0
    assert math.isnan(told["BCE step of 4 on cpu, shapes fixed: out of memory"])


def test_memory_that_a_compiler_missed_is_memory_and_other_failures_are_not() -> None:
    failed = RuntimeError("backend failed")
    failed.__cause__ = torch.OutOfMemoryError("CUDA out of memory")

    assert training._is_out_of_memory(failed)
    assert training._is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not training._is_out_of_memory(RuntimeError("an illegal memory access was encountered"))


@pytest.mark.parametrize("room", [1, 4, 5, 7, 8, 100, 127, 128, 700, 1_000, 1_001, 5_000])
def test_the_largest_batch_is_found_to_a_sixteenth_and_never_beyond_what_fits(room: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    found = training.largest_that_fits(fits, first=4, most=1_000)

    assert found.size <= room
    assert found.size == 0 or found.size in tried
    assert found.is_bounded == (room >= 1_000)
    assert room < 4 or found.size >= min(room, 1_000) * 15 / 16
    assert len(tried) == len(set(tried)) <= 14


def test_the_rate_of_products_is_the_best_over_several_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One count alone may be bound by memory, and no floor then."""
    rates = {rows: 1e9 * rows for rows in training.ROW_COUNTS} | {training.ROW_COUNTS[-1]: 1.0}
    monkeypatch.setattr(training, "_product_rate", lambda rows, *_: rates[rows])

    assert training.product_rate() == 1e9 * training.ROW_COUNTS[-2]


def test_a_rate_is_measured_at_every_row_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OPERATIONS_TIMED", 1)

    assert all(training.product_rate(row_counts=(rows,)) > 0.0 for rows in (8, 64))


def test_who_is_faster_than_the_floor_has_no_floor() -> None:
    floor = Baseline(training.FLOOR, 100.0)
    rows = [row("step", 60.0, unit="sequences/s", baseline=floor), row("step", 900.0, unit="sequences/s")]
    training.check_floors(rows)

    with pytest.raises(ValueError, match=r"1\.2 times its floor"):
        training.check_floors([*rows, row("step", 120.0, unit="sequences/s", baseline=floor)])
