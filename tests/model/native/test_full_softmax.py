"""The kernel of full cross-entropy beside the definition, for shapes that fill no tile, and with several threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.native.full_softmax import Gradients, native_full_softmax
from model.native.functions import kernels

found = kernels()
pytestmark = pytest.mark.skipif(found is None, reason="no C++ compiler here")

SHORT = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(found is None or not found.has_short_products, reason="no products of bfloat16 here"),
)
KINDS = [torch.float32, SHORT]
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Of the largest number of a tensor: factors of bfloat16 keep eight bits."""


class Case:
    """P positions and N items of D units."""

    def __init__(self, positions: int, items: int, units: int, *, kind: torch.dtype) -> None:
        self._kind = kind
        generator = torch.Generator().manual_seed(1)
        self.hidden_PD = torch.randn(positions, units, generator=generator)
        self.item_ND = torch.randn(items, units, generator=generator) * 0.3
        self.target_P = torch.randint(items, (positions,), generator=generator)
        self.weight_P = torch.rand(positions, generator=generator)

    def by_kernel(self) -> tuple[Tensor, Tensor, Tensor]:
        to = Gradients(torch.empty_like(self.hidden_PD), torch.zeros_like(self.item_ND))
        return self.by_kernel_to(to), *to

    def by_kernel_to(self, to: Gradients) -> Tensor:
        return native_full_softmax(
            self.hidden_PD, self.item_ND, target_P=self.target_P, weight_P=self.weight_P, kind=self._kind, to=to
        )

    def by_definition(self) -> tuple[Tensor, Tensor, Tensor]:
        hidden_PD, item_ND = (tensor.double().requires_grad_() for tensor in (self.hidden_PD, self.item_ND))
        loss_P = functional.cross_entropy(hidden_PD @ item_ND.T, self.target_P, reduction="none")
        loss = torch.dot(loss_P, self.weight_P.double())
        torch.autograd.backward(loss)
        assert hidden_PD.grad is not None
        assert item_ND.grad is not None
        return loss.detach(), hidden_PD.grad, item_ND.grad


SHAPES = [(5, 3, 3), (16, 64, 16), (17, 100, 50), (300, 700, 64), (70, 130, 200), (513, 65, 255), (40, 1301, 33)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_the_definition(shape: tuple[int, int, int], kind: torch.dtype) -> None:
    case = Case(*shape, kind=kind)

    for ours, exact in zip(case.by_kernel(), case.by_definition(), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0.0, atol=ROUNDED[kind] * float(exact.abs().max()))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_threads_give_the_bytes_of_one(shape: tuple[int, int, int], kind: torch.dtype) -> None:
    case = Case(*shape, kind=kind)
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(case.by_kernel())

    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("ahead", [200.0, -200.0])
def test_scores_far_from_zero_cost_what_those_near_it_do(ahead: float, kind: torch.dtype) -> None:
    case = Case(70, 135, 9, kind=kind)
    case.item_ND[:, 0] = 1.0
    case.hidden_PD[30:, 0] = ahead

    for ours, exact in zip(case.by_kernel(), case.by_definition(), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0.0, atol=10 * ROUNDED[kind] * float(exact.abs().max()))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_not_finite_shows_in_the_loss(kind: torch.dtype) -> None:
    case = Case(5, 100, 8, kind=kind)
    case.hidden_PD[2, 3] = torch.nan

    assert not torch.isfinite(case.by_kernel()[0])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_gradients_of_items_are_added_to_what_is_there(kind: torch.dtype) -> None:
    case = Case(20, 30, 8, kind=kind)
    _, _, once_ND = case.by_kernel()
    to = Gradients(torch.empty_like(case.hidden_PD), torch.ones_like(case.item_ND))

    case.by_kernel_to(to)

    torch.testing.assert_close(to.item, once_ND + 1.0)
