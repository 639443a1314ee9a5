"""Sequences in few shapes, and blocks that torch compiles in one piece."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.fixed_shapes import FEWEST, MOST_SHAPES, SHORTEST, Bucket, buckets_of

COMPILED_IN_ONE_PIECE = """
import numpy as np, torch
from model.dropout import Dropout
from model.fixed_shapes import through
from model.sasrec import SASRec
from model.settings import ModelSettings

model = SASRec(ModelSettings(max_length=16, units=8, dropout=0.5), capacity=8, generator=torch.Generator())
hidden_BTD = torch.randn(2, 16, 8, requires_grad=True)
place_BT = np.arange(32).reshape(2, 16)
kept = [block.kept(place_BT, Dropout(0.5, 1), like=hidden_BTD) for block in model.blocks]
expected_BTD = through(model.blocks, hidden_BTD, kept)
compiled = torch.compile(through, backend="aot_eager", fullgraph=True, dynamic=False)
torch.testing.assert_close(compiled(list(model.blocks), hidden_BTD, kept), expected_BTD)
"""
"""In a process of its own: functions whose shapes are checked, as everywhere in these tests, cannot be compiled."""


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300))
def test_every_sequence_has_one_bucket_that_holds_it(lengths: list[int]) -> None:
    buckets = buckets_of(np.array(lengths), max_length=50)

    assert sorted(np.concatenate([bucket.group_G for bucket in buckets]).tolist()) == list(range(len(lengths)))
    for bucket in buckets:
        assert max(lengths[sequence] for sequence in bucket.group_G) <= bucket.slots <= 50
        assert len(bucket.group_G) <= bucket.sequences == len(bucket.filled())


@given(st.data())
def test_there_are_few_shapes(data: st.DataObject) -> None:
    shapes = set()
    for _ in range(10):
        lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=512))
        shapes |= {(bucket.slots, bucket.sequences) for bucket in buckets_of(np.array(lengths), max_length=50)}

    assert shapes <= {(slots, FEWEST << power) for slots in (SHORTEST, 32, 50) for power in range(7)}
    assert len(shapes) <= MOST_SHAPES


def test_a_bucket_is_filled_with_its_first_sequence() -> None:
    assert Bucket(np.array([4, 7, 9]), slots=16, sequences=4).filled().tolist() == [4, 7, 9, 4]


def test_all_blocks_are_compiled_as_one_graph() -> None:
    subprocess.run([sys.executable, "-c", COMPILED_IN_ONE_PIECE], check=True)
