"""The kernels as differentiable functions of torch.

Shapes: B sequences, P positions of all of them one after another, Q positions that come out, D units, R rows of the
item table, T positions that the network knows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.dropout import Dropout
from model.lengths import Packed
from model.native.build import library
from model.native.library import (
    NOTHING_DROPPED,
    BlockCall,
    Dropped,
    EmbeddingCall,
    Kernels,
    NormCall,
    Sequences,
    SoftmaxCall,
    address,
    addresses,
)


class Shape(NamedTuple):
    """What a block is, apart from its weights; `site` is the first of its two sites of dropout."""

    heads: int
    norm: Literal["pre", "post"]
    site: int


class Read(NamedTuple):
    """How the first block's input is made of embeddings."""

    sequences: Sequences
    scale: float
    dropped: Dropped


@functools.cache
def kernels() -> Kernels | None:
    """The compiled kernels; None where they cannot be had."""
    found = library()
    return None if found is None else Kernels(found)


def _kernels() -> Kernels:
    found = kernels()
    assert found is not None, "ask `kernels()` first"
    return found


WIDEST = 256
"""Units up to which the kernels pay; wider networks are torch's, in one thread (model/one_thread.py)."""


def runs_natively(weight: Tensor, *, heads: int) -> bool:
    """Whether the kernels can and should do a network with such weights."""
    is_fitting = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[1] <= WIDEST
    return is_fitting and heads <= weight.shape[1] // 4 and kernels() is not None


def native_embedding(
    item_RD: Float[Tensor, "R D"],
    place_TD: Float[Tensor, "T D"],
    sequences: Packed,
    *,
    scale: float,
    dropout: Dropout | None,
) -> Float[Tensor, "P D"]:
    """`dropout(scale * item + place)` of every position."""
    row_P = sequences.row_P.contiguous()
    read = Read(_sequences(sequences), scale, _dropped(dropout))
    embedded_PD: Tensor = _Embedding.apply(item_RD, place_TD, row_P, read)
    return embedded_PD


def native_block(
    input_PD: Float[Tensor, "P D"],
    weights: Sequence[Tensor],
    sequences: Packed,
    shape: Shape,
    dropout: Dropout | None,
) -> Float[Tensor, "Q D"]:
    """What comes out of a block of SASRec; `weights` in the order of `enum Weight` in block.h."""
    output_QD: Tensor = _Block.apply(input_PD, _sequences(sequences), shape, _dropped(dropout), *weights)
    return output_QD


def native_norm(input_QD: Float[Tensor, "Q D"], norm: nn.LayerNorm) -> Float[Tensor, "Q D"]:
    """Layer normalisation; the gradients of its weights are the same for any number of threads."""
    output_QD: Tensor = _Norm.apply(input_QD, norm.weight, norm.bias)
    return output_QD


def native_softmax_gradients(
    score_CN: Float[Tensor, "C N"], *, target_C: Int[Tensor, " C"], weight_C: Float[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """The cross-entropy of each row's target; scores become `weight * (probability - [is target])` in place.

    Scores are of float32 or bfloat16, all else of float32.
    """
    assert score_CN.dtype in {torch.float32, torch.bfloat16}
    assert len(score_CN) == len(target_C) == len(weight_C)
    loss_C = torch.empty_like(weight_C)
    call = SoftmaxCall(
        rows=score_CN.shape[0],
        columns=score_CN.shape[1],
        threads=torch.get_num_threads(),
        is_short=score_CN.dtype == torch.bfloat16,
        scores=address(score_CN, score_CN.dtype),
        targets=address(target_C, torch.int64),
        weights=address(weight_C),
        losses=address(loss_C),
    )
    _kernels().softmax_gradients(call)
    return loss_C


class _Embedding(torch.autograd.Function):
    """`dropout(scale * item + place)` of every position; the gradient of the item table is sparse."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        item_RD: Tensor,
        place_TD: Tensor,
        row_P: Tensor,
        read: Read,
    ) -> Tensor:
        """P x D."""
        output_PD = item_RD.new_empty(read.sequences.positions, item_RD.shape[1])
        call = _embedding_call(place_TD, row_P, read)
        call.items, call.places, call.output = address(item_RD), address(place_TD), address(output_PD)
        call.table_rows = len(item_RD)
        _kernels().embedding_forward(call)
        ctx.save_for_backward(row_P, place_TD)
        ctx.kept = (item_RD.shape, read)
        return output_PD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given_PD: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        """For items and places."""
        row_P, place_TD = ctx.saved_tensors
        shape, read = ctx.kept
        given_PD = given_PD.contiguous()
        item_PD, place_gradient_TD = torch.empty_like(given_PD), torch.zeros_like(place_TD)
        call = _embedding_call(place_TD, row_P, read)
        call.given, call.item_gradient = address(given_PD), address(item_PD)
        call.place_gradient = address(place_gradient_TD)
        _kernels().embedding_backward(call)
        item_gradient_RD = torch.sparse_coo_tensor(row_P[None], item_PD, shape, check_invariants=False)
        return item_gradient_RD, place_gradient_TD, None, None


class _Block(torch.autograd.Function):
    """A block of SASRec; `weights` in the order of `enum Weight` in block.h."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        input_PD: Tensor,
        sequences: Sequences,
        shape: Shape,
        dropped: Dropped,
        *weights: Tensor,
    ) -> Tensor:
        """Q x D."""
        units = input_PD.shape[1]
        input_PD = input_PD.contiguous()
        saved = _kernels().saved_for_block(sequences, units=units, heads=shape.heads)
        output_QD = input_PD.new_empty(sequences.outputs, units)
        call = _block_call(input_PD, sequences, shape, dropped, weights)
        call.saved, call.output = address(saved), address(output_QD)
        _kernels().block_forward(call)
        ctx.save_for_backward(input_PD, saved, *weights)
        ctx.kept = (sequences, shape, dropped)
        return output_QD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given_QD: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        """For the input and every weight."""
        input_PD, saved, *weights = ctx.saved_tensors
        given_QD = given_QD.contiguous()
        input_gradient_PD = torch.empty_like(input_PD)
        gradients = [torch.empty_like(weight) for weight in weights]
        sequences, shape, dropped = ctx.kept
        call = _block_call(input_PD, sequences, shape, dropped, weights)
        call.saved, call.given, call.input_gradient = address(saved), address(given_QD), address(input_gradient_PD)
        call.gradients = addresses(gradients)
        _kernels().block_backward(call)
        return input_gradient_PD, None, None, None, *gradients


class _Norm(torch.autograd.Function):
    """Layer normalisation of rows."""

    @staticmethod
    def forward(ctx: Any, input_QD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:  # noqa: ANN401 - as above
        """Q x D."""
        input_QD = input_QD.contiguous()
        output_QD = torch.empty_like(input_QD)
        call = _norm_call(input_QD, weight_D, bias_D)
        call.output = address(output_QD)
        _kernels().norm_forward(call)
        ctx.save_for_backward(input_QD, weight_D, bias_D)
        return output_QD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given_QD: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - as above
        """For the input and both weights."""
        given_QD = given_QD.contiguous()
        gradients = tuple(map(torch.empty_like, ctx.saved_tensors))
        call = _norm_call(*ctx.saved_tensors)
        call.given = address(given_QD)
        call.input_gradient, call.weight_gradient, call.bias_gradient = map(address, gradients)
        _kernels().norm_backward(call)
        return gradients


def _norm_call(input_QD: Tensor, weight_D: Tensor, bias_D: Tensor) -> NormCall:
    return NormCall(
        rows=input_QD.shape[0],
        units=input_QD.shape[1],
        threads=torch.get_num_threads(),
        input=address(input_QD),
        weight=address(weight_D),
        bias=address(bias_D),
    )


def _embedding_call(place_TD: Tensor, row_P: Tensor, read: Read) -> EmbeddingCall:
    return EmbeddingCall(
        sequences=len(read.sequences.length_B),
        units=place_TD.shape[1],
        max_length=place_TD.shape[0],
        threads=torch.get_num_threads(),
        site=0,
        **read.dropped._asdict(),
        scale=read.scale,
        lengths=address(read.sequences.length_B, torch.int64),
        rows=address(row_P, torch.int64),
    )


def _block_call(
    input_PD: Tensor, sequences: Sequences, shape: Shape, dropped: Dropped, weights: Sequence[Tensor]
) -> BlockCall:
    return BlockCall(
        sequences=len(sequences.length_B),
        units=input_PD.shape[1],
        heads=shape.heads,
        pre_norm=shape.norm == "pre",
        threads=torch.get_num_threads(),
        site=shape.site,
        **dropped._asdict(),
        lengths=address(sequences.length_B, torch.int64),
        lasts=address(sequences.last_B, torch.int64),
        input=address(input_PD),
        weights=addresses(weights),
    )


def _sequences(packed: Packed) -> Sequences:
    length_B, last_B = (
        torch.from_numpy(np.ascontiguousarray(count_B, dtype=np.int64)) for count_B in (packed.length_B, packed.last_B)
    )
    return Sequences(length_B, last_B, len(packed.row_P), int(packed.last_B.sum()))


def _dropped(dropout: Dropout | None) -> Dropped:
    return NOTHING_DROPPED if dropout is None else Dropped(dropout.seed, dropout.dropped, dropout.factor)
