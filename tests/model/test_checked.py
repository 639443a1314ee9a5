"""Whatever the annotations allow is either computed, the same with kernels as without, or refused by the same error."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model.catalogue import PADDING
from model.full_softmax import full_cross_entropy
from model.lengths import Packed
from model.losses import LOSSES, Loss, Positions
from model.native.library import address
from model.ranking import foreseen, top_k
from model.sasrec import SASRec
from model.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("both_ways")

ROWS = torch.tensor([[0, 0, 3, 1, 2], [4, 5, 6, 7, 8]])
CAPACITY = 10
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture
def network() -> SASRec:
    made = SASRec(ModelSettings(max_length=6, units=8), capacity=CAPACITY, generator=torch.Generator().manual_seed(1))
    made.reset_rows(np.arange(1, CAPACITY), np.random.default_rng(1))
    return made


def positions(**changes: object) -> Positions:
    generator = torch.Generator().manual_seed(1)
    whole = Positions(
        hidden_PD=torch.randn(5, 8, generator=generator),
        target_P=torch.tensor([1, 2, 3, 4, 5]),
        weight_P=torch.rand(5, generator=generator),
        item_RD=torch.randn(CAPACITY, 8, generator=generator),
        size=8,
        negative=torch.tensor([1, 2, 6]),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]  # the test names the fields


def test_rows_of_four_bytes_are_read_as_rows(network: SASRec) -> None:
    assert torch.equal(network(ROWS.int()), network(ROWS))
    assert torch.equal(network.encode_last(ROWS.int()), network.encode_last(ROWS))


@pytest.mark.parametrize("row", [CAPACITY, 5_000, 10**9, -1])
def test_a_row_that_the_table_does_not_have_is_refused(network: SASRec, row: int) -> None:
    for read in (network, network.encode_last):
        with pytest.raises(IndexError, match="look them up anew"):
            read(torch.tensor([[1, row]]))


def test_rows_that_are_no_whole_numbers_are_refused(network: SASRec) -> None:
    packed = Packed(torch.ones(2), np.array([2]), np.array([2]))

    with pytest.raises(TypeError, match="whole numbers"):
        network.encode(packed)


@pytest.mark.parametrize(("length", "last"), [(3, 3), (1, 1), (2, 3), (2, -1)])
def test_lengths_that_are_not_those_of_the_rows_are_refused(network: SASRec, length: int, last: int) -> None:
    with pytest.raises(ValueError, match="are no sequences"):
        network.encode(Packed(torch.tensor([1, 2]), np.array([length]), np.array([last])))


@every_loss
@pytest.mark.parametrize(
    "same",
    [
        {"target_P": torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32)},
        {"negative": torch.tensor([1, 2, 6], dtype=torch.int16)},
    ],
    ids=["targets", "negatives"],
)
def test_narrow_rows_cost_what_wide_ones_do(loss: Loss, same: dict[str, Tensor]) -> None:
    assert torch.equal(loss(positions(**same)), loss(positions()))


@every_loss
def test_weights_of_another_kind_weigh_the_same(loss: Loss) -> None:
    assert torch.equal(loss(positions(weight_P=positions().weight_P.double())), loss(positions()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_P": torch.tensor([PADDING, 2, 3, 4, 5])},
        {"target_P": torch.tensor([8, 2, 3, 4, 5])},
        {"target_P": torch.tensor([10**8, 2, 3, 4, 5])},
        {"negative": torch.tensor([1, 8])},
        {"negative": torch.tensor([1, -1])},
        {"size": 1},
    ],
    ids=["padding", "not in use", "far away", "a negative not in use", "below nothing", "no items"],
)
def test_a_row_that_is_not_in_use_is_no_target_and_no_negative(wrong: dict[str, object]) -> None:
    with pytest.raises(IndexError, match="look them up anew"):
        positions(**wrong)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_hidden_states_of_another_kind_than_the_items_are_refused(kind: torch.dtype) -> None:
    with pytest.raises(TypeError, match="the same kind"):
        positions(hidden_PD=positions().hidden_PD.to(kind))
    with pytest.raises(TypeError, match="the same kind"):
        everything(hidden_PD=positions().hidden_PD.to(kind))


@every_loss
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_where_both_are_of_another_kind_so_is_the_loss(loss: Loss, kind: torch.dtype) -> None:
    whole = positions()

    cost = loss(positions(hidden_PD=whole.hidden_PD.to(kind), item_RD=whole.item_RD.to(kind)))

    assert cost.dtype == kind
    torch.testing.assert_close(cost.float(), loss(whole), rtol=0.03, atol=0.03)


def everything(**changes: Tensor) -> Tensor:
    whole = positions()
    given = {
        "hidden_PD": whole.hidden_PD,
        "item_RD": whole.item_RD,
        "target_P": whole.target_P,
        "weight_P": whole.weight_P,
    } | changes
    return full_cross_entropy(given.pop("hidden_PD"), given.pop("item_RD"), **given, size=8)  # type: ignore[arg-type]


def test_cross_entropy_alone_takes_and_refuses_the_same() -> None:
    assert torch.equal(everything(target_P=positions().target_P.int()), everything())
    assert torch.equal(everything(weight_P=positions().weight_P.double()), everything())
    with pytest.raises(IndexError, match="look them up anew"):
        everything(target_P=torch.tensor([PADDING, 2, 3, 4, 5]))


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_products_of_any_kind_are_made(kind: torch.dtype) -> None:
    cost = LOSSES["cross_entropy"](positions(product_kind=kind))

    torch.testing.assert_close(cost, LOSSES["cross_entropy"](positions()), rtol=0.01, atol=0.01)


def ranked(**changes: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks and best items."""
    given = {"excluded": torch.tensor([[3], [4]]), "target": torch.tensor([1, 2]), "live": torch.arange(CAPACITY) > 0}
    given |= {"hidden": positions().hidden_PD[:2]} | changes
    item_RD = positions().item_RD
    found = foreseen(
        given["hidden"], item_RD, target_P=given["target"], excluded_PE=given["excluded"], live_R=given["live"], k=3
    )
    best = top_k(given["hidden"], item_RD, k=3, excluded_BE=given["excluded"], live_R=given["live"])
    assert torch.equal(best.row_BK, found.row_PK)
    return found


def test_narrow_rows_rank_as_wide_ones_do() -> None:
    narrow = ranked(excluded=torch.tensor([[3], [4]], dtype=torch.int32), target=torch.tensor([1, 2]).int())

    for one, other in zip(narrow, ranked(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("where", ["excluded", "target"])
@pytest.mark.parametrize("row", [-1, CAPACITY, 10**9])
def test_a_row_that_is_not_there_has_no_rank(where: str, row: int) -> None:
    wrong = {"excluded": torch.tensor([[3], [row]])} if where == "excluded" else {"target": torch.tensor([1, row])}

    with pytest.raises(IndexError, match="look them up anew"):
        ranked(**wrong)


def test_hidden_states_of_another_kind_are_not_ranked() -> None:
    with pytest.raises(TypeError, match="the same kind"):
        ranked(hidden=positions().hidden_PD[:2].double())


def test_no_item_is_the_best_of_none() -> None:
    best = top_k(
        positions().hidden_PD,
        positions().item_RD,
        k=0,
        excluded_BE=torch.empty(5, 0, dtype=torch.int64),
        live_R=torch.ones(CAPACITY, dtype=torch.bool),
    )

    assert best.row_BK.shape == (5, 0)


def test_a_kernel_is_never_given_numbers_of_another_kind() -> None:
    with pytest.raises(TypeError, match="convert the numbers first"):
        address(torch.ones(2, dtype=torch.float64))
