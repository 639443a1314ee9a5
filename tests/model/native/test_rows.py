"""Row gradients, Adam on rows and scores of own choices are torch's, to the byte whatever the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from model.catalogue import PADDING
from model.native.functions import kernels
from model.native.rows import merged, sorted_rows
from model.native.scores import native_scores
from model.optimiser import RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler, or the kernels are switched off")

FAR = 5_000_000
"""A row whose number takes several digits to sort by."""


@given(st.lists(st.sampled_from([PADDING, 1, 2, 3, 2_047, 2_048, FAR, FAR + 1]), max_size=60))
def test_rows_are_sorted_and_equal_ones_keep_their_order(rows: list[int]) -> None:
    found = sorted_rows(torch.tensor(rows, dtype=torch.int64))

    expected = sorted((row, place) for place, row in enumerate(rows) if row != PADDING)
    assert found.row_U.tolist() == sorted({row for row, _ in expected})
    assert found.order_N[: len(expected)].tolist() == [place for _, place in expected]
    assert found.start.tolist()[-1] == len(expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_values_of_equal_rows_add_up_as_in_a_sparse_tensor(threads: int) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    row_N = torch.randint(1, 300, (2_000,), generator=generator)
    value_ND = torch.randn(2_000, 7, generator=generator)
    expected = torch.sparse_coo_tensor(row_N[None], value_ND, (300, 7), check_invariants=True).coalesce()

    row_U, sum_UD = merged(row_N, value_ND)

    assert torch.equal(row_U, expected.indices()[0])
    torch.testing.assert_close(sum_UD, expected.values())


@pytest.mark.parametrize("units", [3, 8, 50])
@pytest.mark.parametrize("choices", [1, 5])
def test_scores_of_own_choices_and_their_gradients_are_those_of_torch(units: int, choices: int) -> None:
    generator = torch.Generator().manual_seed(1)
    row_PC = torch.randint(0, 40, (200, choices), generator=generator)
    given_PC = torch.randn(200, choices, generator=generator)
    start = torch.randn(200, units, generator=generator), torch.randn(40, units, generator=generator)
    runs = []
    for threads in (0, 1, 2):
        hidden_PD, item_RD = (tensor.clone().requires_grad_() for tensor in start)
        if threads == 0:
            item_PCD = functional.embedding(row_PC, item_RD, padding_idx=PADDING)
            score_PC = torch.einsum("pd,pcd->pc", hidden_PD, item_PCD)
        else:
            torch.set_num_threads(threads)
            score_PC = native_scores(hidden_PD, item_RD, row_PC)
        torch.autograd.backward(score_PC, given_PC)
        assert hidden_PD.grad is not None
        assert item_RD.grad is not None
        runs.append((score_PC.detach(), hidden_PD.grad, item_RD.grad.to_dense()))

    by_torch, by_one, by_two = runs

    torch.testing.assert_close(by_one, by_torch, rtol=1e-5, atol=1e-4)
    for one, two in zip(by_one, by_two, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rows_learn_as_torch_has_them_learn(weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernel = learnt(weight_decay)
    monkeypatch.setattr("model.optimiser.learns_natively", lambda _: False)

    by_torch = learnt(weight_decay)

    for name, found in by_kernel.items():
        torch.testing.assert_close(found, by_torch[name], rtol=2e-5, atol=1e-7, msg=name)


def learnt(weight_decay: float) -> dict[str, torch.Tensor]:
    """Rows that began in different steps and sat out some, after thirty steps."""
    network = SASRec(
        ModelSettings(max_length=4, units=10, blocks=0), capacity=200, generator=torch.Generator().manual_seed(1)
    )
    rng = np.random.default_rng(1)
    network.reset_rows(np.arange(1, 200), rng)
    optimiser = RowAdam(network, learning_rate=0.01, weight_decay=weight_decay)
    for step in range(30):
        if step == 12:
            optimiser.reset_rows(np.arange(50, 70))
        rows = torch.from_numpy(rng.choice(199, size=80) + 1)
        values = torch.from_numpy(rng.standard_normal((80, 10), dtype=np.float32))
        network.item_RD.grad = torch.sparse_coo_tensor(rows[None], values, network.item_RD.shape, check_invariants=True)
        optimiser.step()
    return {"item_RD": network.item_RD.detach().clone()} | optimiser.tensors(rows=200)
