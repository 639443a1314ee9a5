"""What the compiled kernels cannot find out for themselves, asked once per call: whether rows exist, and kinds agree.

A kernel reads where it is told to. So whatever comes from outside passes here first, with or without kernels.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from model.catalogue import PADDING


def existing_rows(row: Tensor, *, end: int, first: int = PADDING) -> Int[Tensor, "*rows"]:
    """The same rows as int64, all of them from `first` to `end` - 1.

    On a GPU they are not looked at, for the host would wait for the answer; torch's own kernels look there.

    Raises:
        TypeError: not whole numbers.
        IndexError: a row that is not there.
    """
    if row.dtype == torch.bool or row.is_floating_point() or row.is_complex():
        raise TypeError(f"rows of {row.dtype} are no rows; pass whole numbers")
    row = row.long()
    if row.device.type == "cpu" and row.numel():
        lowest, highest = (int(one) for one in torch.aminmax(row))
        if lowest < first or highest >= end:
            raise IndexError(f"rows {lowest} to {highest} where there are {first} to {end - 1}; look them up anew")
    return row


def check_kinds(hidden: Tensor, item: Tensor) -> None:
    """That hidden states and items are numbers of one kind, as a product needs them.

    Raises:
        TypeError: they are not.
    """
    if hidden.dtype != item.dtype:
        raise TypeError(f"hidden states are {hidden.dtype} and items {item.dtype}; make both the same kind")
