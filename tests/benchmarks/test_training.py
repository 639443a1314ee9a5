"""The training benchmark's own arithmetic, and the part for GPUs on the device that is always there."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import training


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
