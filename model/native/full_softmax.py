"""Cross-entropy over all items by one kernel: with products of float32, or of bfloat16 where the processor has them.

Shapes: P positions, N items, D units, R rows of the item table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.native.functions import WIDEST, kernels
from model.native.library import FullSoftmaxCall, ManySoftmaxCall, address
from model.one_thread import weighted_sum

MOST_ITEMS = 1 << 17
"""The kernel keeps half a kilobyte for each item: with so many 64 MiB."""


class Gradients(NamedTuple):
    """Of a loss: with respect to hidden states, replaced, and to items, added to."""

    hidden_PD: Float[Tensor, "P D"]
    item: Float[Tensor, "_ D"]


def softens_natively(item_RD: Float[Tensor, "R D"], kind: torch.dtype) -> bool:
    """Whether the kernel can do these items with products of this kind."""
    found = kernels()
    is_fitting = item_RD.device.type == "cpu" and item_RD.dtype == torch.float32 and item_RD.shape[1] <= WIDEST
    if found is None or not (is_fitting and item_RD.is_contiguous() and 1 < len(item_RD) <= MOST_ITEMS):
        return False
    return kind == torch.float32 or (kind == torch.bfloat16 and found.has_short_products)


def native_full_softmax(
    hidden_PD: Float[Tensor, "P D"],
    item_ND: Float[Tensor, "N D"],
    *,
    target_P: Int[Tensor, " P"],
    weight_P: Float[Tensor, " P"],
    kind: torch.dtype,
    to: Gradients,
) -> Float[Tensor, ""]:
    """The weighted sum of the cross-entropies of targets among the items; its gradients go to `to`."""
    hidden_PD, target_P, weight_P = hidden_PD.contiguous(), target_P.contiguous(), weight_P.contiguous()
    assert len(hidden_PD) == len(target_P) == len(weight_P)
    loss_P = torch.empty_like(weight_P)
    found = kernels()
    assert found is not None, "ask `softens_natively` first"
    common = {
        "positions": len(hidden_PD),
        "items": len(item_ND),
        "units": item_ND.shape[1],
        "threads": torch.get_num_threads(),
        "hidden": address(hidden_PD),
        "table": address(item_ND),
        "targets": address(target_P, torch.int64),
        "weights": address(weight_P),
        "losses": address(loss_P),
        "hidden_gradient": address(to.hidden_PD),
        "item_gradient": address(to.item),
    }
    if kind == torch.bfloat16:
        found.full_softmax(FullSoftmaxCall(**common))
    else:
        found.many_softmax(ManySoftmaxCall(**common))
    return weighted_sum(loss_P, weight_P)
