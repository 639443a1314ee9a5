"""The native kernels compute what torch computes, for every shape, to the byte whatever the number of threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import model.sasrec
from model.lengths import Packed
from model.native.functions import kernels, native_softmax_gradients
from model.native.rows import Rates, RowState, adam_rows
from model.native.scores import native_scores
from model.sasrec import SASRec
from model.settings import ModelSettings

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler, or the kernels are switched off")

ITEMS = 60
TOLERANCE = 2e-5
"""Of the largest number of a tensor: sums in another order."""
SETTINGS = [
    ModelSettings(max_length=210, units=units, heads=heads, blocks=blocks, norm=norm, dropout=dropout)
    for (units, heads, blocks), norm, dropout in itertools.product(
        ((8, 2, 0), (8, 1, 1), (50, 1, 2), (48, 3, 2), (20, 5, 1)), ("pre", "post"), (0.0, 0.3)
    )
]
LENGTHS = np.array([1, 200, 3, 50, 49, 97, 16, 17, 0, 130])
LASTS = np.array([1, 200, 2, 5, 49, 0, 3, 17, 0, 60])


def network(of: ModelSettings) -> SASRec:
    """With weights of which none is one or zero."""
    made = SASRec(of, capacity=ITEMS + 1, generator=torch.Generator().manual_seed(1))
    made.reset_rows(np.arange(1, ITEMS + 1), np.random.default_rng(1))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    return made


def sequences(length_B: np.ndarray, last_B: np.ndarray) -> Packed:
    row_P = np.random.default_rng(2).integers(1, ITEMS + 1, size=int(length_B.sum()))
    return Packed(torch.from_numpy(row_P), length_B, last_B)


def learnt(made: SASRec, packed: Packed) -> dict[str, torch.Tensor]:
    """What comes out, and the gradient of every weight."""
    made.zero_grad()
    output_QD = made.encode(packed, rng=np.random.default_rng(5))
    given_QD = torch.randn(output_QD.shape, generator=torch.Generator().manual_seed(4))
    torch.autograd.backward((output_QD * given_QD).sum())
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
        for name, weight in made.named_parameters()
    }
    return {"output": output_QD.detach(), **gradients}


def learnt_by_torch(made: SASRec, packed: Packed, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(model.sasrec, "runs_natively", lambda *_, **__: False)
        return learnt(made, packed)


@pytest.mark.parametrize("of", SETTINGS, ids=str)
def test_states_and_gradients_are_those_of_torch(of: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    made, packed = network(of), sequences(LENGTHS, LASTS)

    expected = learnt_by_torch(made, packed, monkeypatch)

    for name, found in learnt(made, packed).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found, expected[name], rtol=0.0, atol=TOLERANCE * scale, msg=name)


@given(
    shapes=st.lists(
        st.integers(0, 70).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length))), max_size=9
    ).filter(lambda shapes: any(last for _, last in shapes)),
    heads=st.sampled_from((1, 2)),
)
@settings(max_examples=25, deadline=None)
def test_any_lengths_come_out_as_by_torch(shapes: list[tuple[int, int]], heads: int) -> None:
    made = network(ModelSettings(max_length=70, units=12, heads=heads, blocks=2))
    length_B, last_B = (np.array([shape[part] for shape in shapes], dtype=np.int64) for part in (0, 1))
    packed = sequences(length_B, last_B)

    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = learnt_by_torch(made, packed, monkeypatch)

    for name, found in learnt(made, packed).items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(found, expected[name], rtol=0.0, atol=10 * TOLERANCE * scale, msg=name)


@pytest.mark.parametrize("of", SETTINGS[4:8], ids=str)
def test_any_number_of_threads_gives_the_same_bytes(of: ModelSettings) -> None:
    made, packed = network(of), sequences(np.tile(LENGTHS, 3), np.tile(LASTS, 3))
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(learnt(made, packed))

    for name, tensor in found[0].items():
        assert all(torch.equal(tensor, other[name]) for other in found[1:]), name


def test_what_is_not_finite_stays_so() -> None:
    """So that the step that would learn it is refused."""
    made, packed = network(SETTINGS[8]), sequences(LENGTHS, LASTS)
    with torch.no_grad():
        made.item_RD[packed.row_P[5]] = torch.nan

    assert torch.isnan(made.encode(packed)).any()


def test_a_very_long_sequence_needs_no_square_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(ModelSettings(max_length=3_000, units=8, heads=2, blocks=1))
    packed = sequences(np.array([3_000]), np.array([3]))

    torch.testing.assert_close(learnt(made, packed)["output"], learnt_by_torch(made, packed, monkeypatch)["output"])


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("columns", [1, 5, 64, 1_003])
def test_scores_become_the_gradient_of_their_cross_entropy(kind: torch.dtype, tolerance: float, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    score_CN = (30.0 * torch.randn(19, columns, generator=generator)).to(kind)
    target_C = torch.randint(columns, (19,), generator=generator)
    weight_C = torch.rand(19, generator=generator)
    free_CN = score_CN.double().requires_grad_()
    expected_C = functional.cross_entropy(free_CN, target_C, reduction="none")
    torch.autograd.backward((expected_C * weight_C).sum())

    loss_C = native_softmax_gradients(score_CN, target_C=target_C, weight_C=weight_C)

    torch.testing.assert_close(loss_C.double(), expected_C.detach(), rtol=1e-6, atol=1e-5)
    assert free_CN.grad is not None
    torch.testing.assert_close(score_CN.double(), free_CN.grad, rtol=0.0, atol=tolerance)


def test_a_score_that_is_not_finite_makes_no_finite_loss() -> None:
    score_CN = torch.zeros(1, 20)
    score_CN[0, 3] = torch.nan

    loss_C = native_softmax_gradients(score_CN, target_C=torch.tensor([1]), weight_C=torch.ones(1))

    assert not torch.isfinite(loss_C).any()


@pytest.mark.parametrize("row", [ITEMS + 1, 1 << 40, -1])
def test_a_row_outside_the_table_is_refused_and_nothing_is_read(row: int) -> None:
    made = network(ModelSettings(max_length=4, units=8, blocks=1))
    row_BT = torch.tensor([[1, row, 2]])

    for reads in (
        made.forward,
        made.encode_last,
        lambda rows: native_scores(made(rows[:, :1])[:, 0], made.item_RD, rows),
    ):
        with pytest.raises(IndexError, match=r"where there are 0 to 60|outside the table of 61 rows"):
            reads(row_BT)


def test_adam_touches_no_row_outside_the_table() -> None:
    state = RowState(torch.zeros(3, 8), torch.zeros(3, 2, 8), *torch.zeros(2, 3, dtype=torch.int64))
    rates = Rates(rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-8, decay=0.0)

    with pytest.raises(IndexError, match="outside the table of 3 rows"):
        adam_rows(state, row_U=torch.tensor([1, 3]), gradient_UD=torch.ones(2, 8), steps=1, rates=rates)

    assert not state.table_RD.any()
