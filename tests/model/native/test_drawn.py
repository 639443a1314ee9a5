"""The kernel of drawn items that all positions share, beside the definition of each loss in `model.losses`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from model.catalogue import PADDING
from model.losses import LOSSES, Loss, Positions, sampled_softmax
from model.native.drawn import draws_natively
from model.native.functions import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler here")

SHAPES = [(1, 2, 3), (5, 3, 3), (24, 64, 16), (25, 100, 50), (300, 700, 64), (129, 130, 200)]
"""Positions, drawn items, units."""
ROWS = 90
each_loss = pytest.mark.parametrize("loss", [loss for name, loss in LOSSES.items() if name != "cross_entropy"])


def positions_of(positions: int, drawn: int, units: int) -> Positions:
    """Fewer rows than are drawn: targets and PADDING are among them, some several times."""
    generator = torch.Generator().manual_seed(1)
    return Positions(
        hidden_PD=torch.randn(positions, units, generator=generator),
        target_P=torch.randint(1, ROWS, (positions,), generator=generator),
        weight_P=torch.rand(positions, generator=generator),
        item_RD=0.3 * torch.randn(ROWS, units, generator=generator),
        size=ROWS,
        negative=torch.randint(ROWS, (drawn,), generator=generator),
        log_q_R=torch.rand(ROWS, generator=generator).log(),
    )


def learnt(loss_of: Loss, positions: Positions, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients; only float32 is for the kernel."""
    hidden_PD, item_RD = (
        one.detach().to(kind, copy=True).requires_grad_() for one in (positions.hidden_PD, positions.item_RD)
    )
    log_q_R = None if positions.log_q_R is None else positions.log_q_R.to(kind)
    loss = loss_of(
        dataclasses.replace(
            positions, hidden_PD=hidden_PD, item_RD=item_RD, weight_P=positions.weight_P.to(kind), log_q_R=log_q_R
        )
    )
    torch.autograd.backward(loss)
    assert hidden_PD.grad is not None
    assert item_RD.grad is not None
    return loss.detach(), hidden_PD.grad, item_RD.grad.to_dense()


@each_loss
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_the_definition(shape: tuple[int, int, int], loss: Loss) -> None:
    positions = positions_of(*shape)
    assert positions.negative is not None
    assert draws_natively(positions.item_RD, positions.negative)

    for ours, exact in zip(learnt(loss, positions, torch.float32), learnt(loss, positions, torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0.0, atol=2e-6 * max(1e-3, float(exact.abs().max())))


@each_loss
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_threads_give_the_bytes_of_one(shape: tuple[int, int, int], loss: Loss) -> None:
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(learnt(loss, positions_of(*shape), torch.float32))

    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("row", [PADDING, 7])
def test_where_nothing_that_counts_was_drawn_nothing_is_learnt(row: int) -> None:
    positions = positions_of(4, 3, 8)
    alone = dataclasses.replace(positions, target_P=torch.full((4,), 7), negative=torch.full((3,), row))

    loss, hidden_PD, item_RD = learnt(sampled_softmax, alone, torch.float32)

    assert loss == 0.0
    assert not hidden_PD.any()
    assert not item_RD.any()


@each_loss
def test_what_is_not_finite_shows_in_the_loss(loss: Loss) -> None:
    positions = positions_of(4, 30, 8)
    positions.hidden_PD[2, 3] = torch.nan

    assert not torch.isfinite(learnt(loss, positions, torch.float32)[0])
