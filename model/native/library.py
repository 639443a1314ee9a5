"""The compiled kernels as functions of tensors: the structures of `kernels.cpp`, and who owns the memory.

Shapes: B sequences, P positions of all sequences one after another, Q positions that come out, D units, T positions of
the longest sequence that the network knows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_POINTER = ctypes.c_void_p
_WEIGHTS = 9


class BlockCall(ctypes.Structure):
    """`struct BlockCall` of block.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequences", "units", "heads", "pre_norm", "threads", "site", "dropped")),
        ("seed", ctypes.c_uint64),
        ("factor", ctypes.c_double),
        *((name, _POINTER) for name in ("lengths", "lasts", "input")),
        ("weights", _POINTER * _WEIGHTS),
        *((name, _POINTER) for name in ("saved", "output", "given", "input_gradient")),
        ("gradients", _POINTER * _WEIGHTS),
    )


class EmbeddingCall(ctypes.Structure):
    """`struct EmbeddingCall` of embedding.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequences", "units", "max_length", "threads", "site", "dropped")),
        ("table_rows", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_double) for name in ("factor", "scale")),
        *((name, _POINTER) for name in ("lengths", "rows", "items", "places", "output", "given")),
        *((name, _POINTER) for name in ("item_gradient", "place_gradient")),
    )


class NormCall(ctypes.Structure):
    """`struct NormCall` of last_norm.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "units", "threads")),
        *((name, _POINTER) for name in ("input", "weight", "bias", "output", "given")),
        *((name, _POINTER) for name in ("input_gradient", "weight_gradient", "bias_gradient")),
    )


class SoftmaxCall(ctypes.Structure):
    """`struct SoftmaxCall` of softmax.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "threads", "is_short")),
        *((name, _POINTER) for name in ("scores", "targets", "weights", "losses")),
    )


class FullSoftmaxCall(ctypes.Structure):
    """`struct FullSoftmaxCall` of full_softmax.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("positions", "items", "units", "threads")),
        *((name, _POINTER) for name in ("hidden", "table", "targets", "weights", "losses")),
        *((name, _POINTER) for name in ("hidden_gradient", "item_gradient")),
    )


class ManySoftmaxCall(ctypes.Structure):
    """`struct ManySoftmaxCall` of many_softmax.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("positions", "items", "units", "threads", "cost")),
        *((name, _POINTER) for name in ("hidden", "table", "targets", "weights", "rows", "discounts", "levels")),
        *((name, _POINTER) for name in ("losses", "hidden_gradient", "item_gradient", "level_gradient")),
    )


class SortCall(ctypes.Structure):
    """`struct SortCall` of rows.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("entries", "padding")),
        *((name, _POINTER) for name in ("rows", "order", "unique", "starts")),
    )


class MergeCall(ctypes.Structure):
    """`struct MergeCall` of rows.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("unique", "units", "threads")),
        *((name, _POINTER) for name in ("order", "starts", "values", "sums")),
    )


class AdamCall(ctypes.Structure):
    """`struct AdamCall` of rows.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("touched", "units", "threads", "steps", "table_rows")),
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "epsilon", "decay")),
        *((name, _POINTER) for name in ("rows", "gradient", "table", "moments", "began", "last")),
    )


class ScoresCall(ctypes.Structure):
    """`struct ScoresCall` of scores.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("positions", "choices", "units", "threads", "unique", "table_rows")),
        *((name, _POINTER) for name in ("hidden", "items", "rows", "scores", "given", "order", "starts")),
        *((name, _POINTER) for name in ("hidden_gradient", "item_gradient")),
    )


class BestCall(ctypes.Structure):
    """`struct BestCall` of best.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("users", "columns", "first", "keep", "excluded_columns", "threads")),
        *((name, _POINTER) for name in ("scores", "live", "excluded", "keys", "counts")),
    )


class OrderCall(ctypes.Structure):
    """`struct OrderCall` of best.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("users", "keep", "threads")),
        *((name, _POINTER) for name in ("keys", "counts", "scores", "rows")),
    )


class NewestWeights(ctypes.Structure):
    """`struct NewestWeights` of newest.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("units", "heads", "pre_norm", "blocks", "max_length", "table_rows")),
        ("scale", ctypes.c_double),
        *((name, _POINTER) for name in ("items", "places", "weights", "norm_weight", "norm_bias")),
    )


class NewestCall(ctypes.Structure):
    """`struct NewestCall` of newest.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequences", "threads")),
        *((name, _POINTER) for name in ("lengths", "rows", "output")),
    )


class ProbeCall(ctypes.Structure):
    """`struct ProbeCall` of probe.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("users", "units", "probes", "keep", "excluded_columns", "threads")),
        *((name, _POINTER) for name in ("hidden", "items", "starts", "rows", "probed", "live", "excluded")),
        *((name, _POINTER) for name in ("keys", "counts")),
    )


class Sequences(NamedTuple):
    """B sequences one after another; of each, the newest `last` come out of a block."""

    length_B: Tensor
    last_B: Tensor
    positions: int
    outputs: int


class Dropped(NamedTuple):
    """What is dropped, as `model.dropout.Dropout` says it; nothing where `dropped` is 0."""

    seed: int
    dropped: int
    factor: float


NOTHING_DROPPED = Dropped(0, 0, 1.0)


class Kernels:
    """The library with its functions declared; tensors are as `address` wants them: contiguous and on the CPU.

    What takes rows of a table raises an IndexError, as torch does, where one lies outside: nothing is read or written.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.native_block_saved.restype = ctypes.c_int64
        library.native_block_saved.argtypes = [ctypes.c_int64] * 4
        names = [f"{name}_{way}" for name in ("block", "norm") for way in ("forward", "backward")]
        names += ["scores_backward", "merge_rows", "full_softmax", "many_softmax"]
        names += ["embedding_backward", "softmax_gradients", "best", "in_order", "newest_forget", "probe"]
        answering = ["embedding_forward", "scores_forward", "adam_rows", "sort_rows"]
        for name in (*names, *answering):
            function = getattr(library, f"native_{name}")
            function.restype, function.argtypes = ctypes.c_int64 if name in answering else None, [_POINTER]
        library.native_newest_prepare.restype, library.native_newest_prepare.argtypes = _POINTER, [_POINTER]
        library.native_newest.restype, library.native_newest.argtypes = ctypes.c_int64, [_POINTER, _POINTER]
        library.native_has_short_products.restype = ctypes.c_int64

    def saved_for_block(self, sequences: Sequences, *, units: int, heads: int) -> Tensor:
        """Room for what a block's backward pass needs."""
        return torch.empty(self._library.native_block_saved(sequences.positions, sequences.outputs, units, heads))

    def block_forward(self, call: BlockCall) -> None:
        """Fills `saved` and `output`."""
        self._library.native_block_forward(ctypes.byref(call))

    def block_backward(self, call: BlockCall) -> None:
        """Fills `input_gradient` and `gradients`."""
        self._library.native_block_backward(ctypes.byref(call))

    def embedding_forward(self, call: EmbeddingCall) -> None:
        """Fills `output`."""
        _demand(self._library.native_embedding_forward(ctypes.byref(call)), call.table_rows)

    def embedding_backward(self, call: EmbeddingCall) -> None:
        """Fills `item_gradient`, adds to `place_gradient`."""
        self._library.native_embedding_backward(ctypes.byref(call))

    def norm_forward(self, call: NormCall) -> None:
        """Fills `output`."""
        self._library.native_norm_forward(ctypes.byref(call))

    def norm_backward(self, call: NormCall) -> None:
        """Fills the three gradients."""
        self._library.native_norm_backward(ctypes.byref(call))

    def softmax_gradients(self, call: SoftmaxCall) -> None:
        """Turns `scores` into gradients, fills `losses`."""
        self._library.native_softmax_gradients(ctypes.byref(call))

    @property
    def has_short_products(self) -> bool:
        """Whether the processor multiplies bfloat16 by itself, so that `full_softmax` is there."""
        return bool(self._library.native_has_short_products())

    def full_softmax(self, call: FullSoftmaxCall) -> None:
        """Fills `losses` and `hidden_gradient`, adds to `item_gradient`."""
        self._library.native_full_softmax(ctypes.byref(call))

    def many_softmax(self, call: ManySoftmaxCall) -> None:
        """Fills `losses`, `hidden_gradient` and `level_gradient`, adds to `item_gradient`."""
        self._library.native_many_softmax(ctypes.byref(call))

    def sort_rows(self, call: SortCall) -> int:
        """Fills `order`, `unique` and `starts`; says how many rows there are."""
        unique: int = self._library.native_sort_rows(ctypes.byref(call))
        return unique

    def merge_rows(self, call: MergeCall) -> None:
        """Fills `sums`."""
        self._library.native_merge_rows(ctypes.byref(call))

    def adam_rows(self, call: AdamCall) -> None:
        """Changes `table`, `moments` and `last`."""
        _demand(self._library.native_adam_rows(ctypes.byref(call)), call.table_rows)

    def scores_forward(self, call: ScoresCall) -> None:
        """Fills `scores`."""
        _demand(self._library.native_scores_forward(ctypes.byref(call)), call.table_rows)

    def scores_backward(self, call: ScoresCall) -> None:
        """Fills both gradients."""
        self._library.native_scores_backward(ctypes.byref(call))

    def best(self, call: BestCall) -> None:
        """Adds to `keys` and `counts`."""
        self._library.native_best(ctypes.byref(call))

    def in_order(self, call: OrderCall) -> None:
        """Sorts `keys`, fills the beginning of `scores` and `rows`."""
        self._library.native_in_order(ctypes.byref(call))

    def newest_prepare(self, weights: NewestWeights) -> int:
        """What `newest` takes; whoever has it gives it to `newest_forget`, once."""
        prepared: int = self._library.native_newest_prepare(ctypes.byref(weights))
        return prepared

    def newest(self, prepared: int, call: NewestCall, *, table_rows: int) -> None:
        """Fills `output`, where a sequence is not empty."""
        _demand(self._library.native_newest(prepared, ctypes.byref(call)), table_rows)

    def newest_forget(self, prepared: int) -> None:
        """Frees what was prepared."""
        self._library.native_newest_forget(prepared)

    def probe(self, call: ProbeCall) -> None:
        """Fills `keys` and `counts`."""
        self._library.native_probe(ctypes.byref(call))


def _demand(within: int, table_rows: int) -> None:
    if not within:
        raise IndexError(f"a row lies outside the table of {table_rows} rows")


def address(tensor: Tensor, kind: torch.dtype = torch.float32) -> int:
    """Where its numbers of this kind lie; the tensor must outlive the call that uses it.

    Raises:
        TypeError: numbers of another kind, which a kernel would take for what they are not.
    """
    if tensor.dtype != kind:
        raise TypeError(f"a kernel reads {kind} here, not {tensor.dtype}; convert the numbers first")
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return tensor.data_ptr()


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Those of a block's weights or gradients, in the order of `enum Weight` in weights.h."""
    return addresses_of_blocks([tensors])


def addresses_of_blocks(blocks: Sequence[Sequence[Tensor]]) -> ctypes.Array[ctypes.c_void_p]:
    """The same of several blocks, one after another."""
    assert all(len(tensors) == _WEIGHTS for tensors in blocks)
    return (_POINTER * (_WEIGHTS * len(blocks)))(*(address(tensor) for tensors in blocks for tensor in tensors))
