"""The training benchmark's own arithmetic, and the part for GPUs on the device that is always there."""

from __future__ import annotations

import numpy as np
import pytest

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
    sequences = training.synthetic_sequences()[:20]

    rows = training.on_device("cpu", sequences, rounds=1, most=8)

    assert [row.what for row in rows] == [
        "largest batch that fits, cpu",
        "BCE step of 4 on cpu, shapes as they come",
        "BCE step of 4 on cpu, shapes fixed",
        "BCE step of 8 on cpu, shapes as they come",
        "BCE step of 8 on cpu, shapes fixed",
    ]
    assert rows[0].ours == 8
    assert all(row.ours > 0 for row in rows)


def test_the_rate_of_products_is_the_best_over_several_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One count alone may be bound by memory, and no floor then."""
    rates = {rows: 1e9 * rows for rows in training.ROW_COUNTS} | {training.ROW_COUNTS[-1]: 1.0}
    monkeypatch.setattr(training, "_product_rate", lambda rows, *_: rates[rows])

    assert training.product_rate() == 1e9 * training.ROW_COUNTS[-2]


def test_a_rate_is_measured_at_every_row_count() -> None:
    assert all(training.product_rate(row_counts=(rows,)) > 0.0 for rows in (8, 64))


def test_who_is_faster_than_the_floor_has_no_floor() -> None:
    floor = Baseline(training.FLOOR, 100.0)
    rows = [row("step", 60.0, unit="sequences/s", baseline=floor), row("step", 900.0, unit="sequences/s")]
    training.check_floors(rows)

    with pytest.raises(ValueError, match=r"1\.2 times its floor"):
        training.check_floors([*rows, row("step", 120.0, unit="sequences/s", baseline=floor)])
