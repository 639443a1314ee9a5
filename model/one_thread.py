"""Torch in one thread, forward and backward, so that the bytes of a step do not depend on how many there are.

With more, torch shares out some sums among them, and what is added in another order rounds to something else: the
gradients of layer norm's weight and bias with two threads already, `dot` and `sum` over many numbers, and products of
matrices, which a BLAS cuts as it likes (seen with eight threads, in their results as in both their gradients). The
native kernels need none of this: the order of their sums follows from the shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Of torch, for whoever calls; 0.1 microseconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_one_thread(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`compute(*inputs)`, where `inputs` are all that it reads of what learns; on a GPU, as ever.

    Weights are handed on as they are, so that a network may read its own.
    """
    if any(one.device.type != "cpu" for one in inputs):
        return compute(*inputs)
    if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
        computed: Tensor = _InOneThread.apply(compute, *inputs)
        return computed
    with one_thread():
        return compute(*inputs)


def weighted_sum(cost_P: Float[Tensor, " P"], weight_P: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """The same number for any number of threads; so are its gradients, which are no sums."""
    with one_thread():
        return torch.dot(cost_P, weight_P)


class _InOneThread(torch.autograd.Function):
    """Keeps the graph of what was computed, and goes back through it in one thread, too."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:  # noqa: ANN401 - torch gives it no type
        """What was computed."""
        # What is no weight was made of weights: going back through it would count these twice.
        inputs = tuple(one if one.is_leaf else one.detach().requires_grad_() for one in inputs)
        with torch.enable_grad(), one_thread():
            computed = compute(*inputs)
        ctx.computed, ctx.inputs = computed, inputs
        return computed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        """For the inputs that learn."""
        wanted = [one for one, is_wanted in zip(ctx.inputs, ctx.needs_input_grad[1:], strict=True) if is_wanted]
        if not ctx.computed.requires_grad:
            return None, *(None for _ in ctx.inputs)
        with one_thread():
            found = iter(torch.autograd.grad(ctx.computed, wanted, given, retain_graph=True, allow_unused=True))
        return None, *(next(found) if is_wanted else None for is_wanted in ctx.needs_input_grad[1:])
