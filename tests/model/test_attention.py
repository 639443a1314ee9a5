"""The plain reading of the network says the same as the fast one."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from model.attention import looked_at
from model.sasrec import SASRec
from model.settings import ModelSettings


def network(norm: Literal["pre", "post"] = "pre", blocks: int = 2) -> SASRec:
    settings = ModelSettings(max_length=6, units=8, heads=2, blocks=blocks, norm=norm)
    made = SASRec(settings, capacity=20, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad=False)
    made.reset_rows(np.arange(1, 20), np.random.default_rng(1))
    made.item_RD.mul_(20.0)
    return made


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("length", [1, 4, 6])
def test_the_newest_position_is_that_of_the_network(norm: Literal["pre", "post"], blocks: int, length: int) -> None:
    rows_T = torch.arange(3, 3 + length)

    looked = looked_at(network(norm, blocks), rows_T)

    expected_D = network(norm, blocks).encode_last(rows_T[None])[0]
    assert torch.allclose(looked.hidden_D, expected_D, atol=1e-5)
    assert looked.attention_NHT.shape == (blocks, 2, length)
    assert torch.allclose(looked.attention_NHT.sum(dim=2), torch.ones(blocks, 2))


def test_only_the_newest_items_are_read() -> None:
    long, short = (looked_at(network(), torch.arange(first, 15)) for first in (1, 9))

    assert torch.equal(long.hidden_D, short.hidden_D)


def test_a_user_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for one with clicks"):
        looked_at(network(), torch.arange(0))
