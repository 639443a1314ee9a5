"""Every loss against numbers worked out by hand, its gradient, and the contract that all of them keep."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
from beartype.roar import BeartypeException
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.nn import functional

from model import full_softmax
from model.catalogue import PADDING
from model.losses import LOSSES, Loss, Positions, gbce, in_slate_pairs, sampled_softmax
from model.native.functions import kernels

NEED_NEGATIVES = [name for name in LOSSES if name != "cross_entropy"]
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
sampled_loss = pytest.mark.parametrize("loss", [LOSSES[name] for name in NEED_NEGATIVES], ids=NEED_NEGATIVES)

# One hidden unit of 1, so that an item's embedding is its score: items 1, 2, 3 score 2, 1, -1.
SCORES = {1: 2.0, 2: 1.0, 3: -1.0}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def by_hand(**changes: object) -> Positions:
    positions = Positions(
        hidden_PD=torch.tensor([[1.0]]),
        target_P=torch.tensor([1]),
        weight_P=torch.tensor([1.0]),
        item_RD=torch.tensor([[0.0], [2.0], [1.0], [-1.0], [99.0]]),
        size=4,
        negative=torch.tensor([[2, 3]]),
    )
    return dataclasses.replace(positions, **changes)  # type: ignore[arg-type]  # the test names the fields


def positions(seed: int = 0, *, count: int = 5, dtype: torch.dtype = torch.float64) -> Positions:
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=dtype)
    return Positions(
        hidden_PD=draw(count, 4),
        target_P=torch.randint(1, 8, (count,), generator=generator),
        weight_P=torch.rand(count, generator=generator, dtype=dtype),
        item_RD=draw(10, 4),
        size=8,
        negative=torch.randint(0, 8, (count, 6), generator=generator),
        log_q_R=draw(10),
    )


def test_bpr_compares_the_target_with_each_negative() -> None:
    assert float(LOSSES["bpr"](by_hand())) == pytest.approx((softplus(1 - 2) + softplus(-1 - 2)) / 2)


def test_bce_wants_the_target_high_and_the_negatives_low() -> None:
    assert float(LOSSES["bce"](by_hand())) == pytest.approx(softplus(-2) + (softplus(1) + softplus(-1)) / 2)


def test_gbce_without_calibration_is_bce_over_all_k_plus_one() -> None:
    loss = gbce(by_hand(negative=torch.tensor([[2]])), calibration=0.0)

    assert float(loss) == pytest.approx((softplus(-2) + softplus(1)) / 2)


def test_gbce_weighs_the_target_by_beta_and_begins_at_its_odds() -> None:
    """Three items, so one negative of the two possible: a = 1/2, and beta = a (0.75 (1 - 2) + 2) = 0.625."""
    start = math.log(0.625)

    loss = gbce(by_hand(negative=torch.tensor([[2]])), calibration=0.75)

    assert float(loss) == pytest.approx((0.625 * softplus(-2 - start) + softplus(1 + start)) / 2)


def test_from_equal_scores_gbce_moves_none_but_the_difference() -> None:
    """Else all scores fall together at first, and rows that all do the same are told apart no more."""
    item_RD = torch.ones(10, 4, dtype=torch.float64)
    hidden_PD = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    drawn = torch.randint(1, 7, (5, 6), generator=torch.Generator().manual_seed(1))
    level = dataclasses.replace(
        positions(), hidden_PD=hidden_PD, item_RD=item_RD, negative=drawn, target_P=torch.full((5,), 7)
    )

    torch.autograd.backward(gbce(level))

    torch.testing.assert_close(hidden_PD.grad, torch.zeros_like(hidden_PD))


def test_sampled_softmax_takes_the_expected_count_of_each_negative_off_its_score() -> None:
    log_q = torch.tensor([-math.inf, math.log(0.5), math.log(0.3), math.log(0.2), -math.inf])
    others = math.exp(1) / (2 * 0.3) + math.exp(-1) / (2 * 0.2)

    loss = sampled_softmax(by_hand(log_q_R=log_q))

    assert float(loss) == pytest.approx(math.log(math.exp(2) + others) - 2)


def test_cross_entropy_ranks_the_target_against_every_item_in_use() -> None:
    total = sum(math.exp(score) for score in SCORES.values())

    assert float(LOSSES["cross_entropy"](by_hand(negative=None))) == pytest.approx(math.log(total) - 2)


def test_uniform_sampled_softmax_comes_close_to_cross_entropy() -> None:
    exact = LOSSES["cross_entropy"](positions(count=200))
    drawn = torch.randint(1, 8, (200, 4_000), generator=torch.Generator().manual_seed(1))

    # Its negatives leave the target out, so the sum is that over the six other items and the target.
    sampled = sampled_softmax(dataclasses.replace(positions(count=200), negative=drawn, log_q_R=log_uniform(6)))

    assert float(sampled) == pytest.approx(float(exact), rel=0.01)


def log_uniform(items: int) -> Tensor:
    return torch.full((10,), -math.log(items), dtype=torch.float64)


@every_loss
def test_a_loss_is_the_weighted_sum_over_the_number_of_positions(loss: Loss) -> None:
    whole = positions()
    alone = [
        loss(
            Positions(
                hidden_PD=whole.hidden_PD[[p]],
                target_P=whole.target_P[[p]],
                weight_P=torch.ones(1, dtype=torch.float64),
                item_RD=whole.item_RD,
                size=whole.size,
                negative=negatives_of(whole, p),
                log_q_R=whole.log_q_R,
            )
        )
        for p in range(5)
    ]

    torch.testing.assert_close(loss(whole), torch.dot(torch.stack(alone), whole.weight_P) / 5)


def negatives_of(whole: Positions, position: int) -> Tensor:
    assert whole.negative is not None
    return whole.negative[[position]]


@every_loss
@pytest.mark.parametrize("field", ["hidden_PD", "item_RD"])
def test_the_gradient_is_right(loss: Loss, field: str) -> None:
    whole = positions()

    def loss_of(value: Tensor) -> Tensor:
        return loss(dataclasses.replace(whole, **{field: DenseGradient.apply(value)}))

    assert torch.autograd.gradcheck(loss_of, getattr(whole, field).clone().requires_grad_())


class DenseGradient(torch.autograd.Function):
    """The item table's gradient names the rows touched; gradcheck wants all of them."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0].to_dense()


@every_loss
def test_a_position_of_weight_zero_teaches_nothing(loss: Loss) -> None:
    whole = positions()
    hidden = whole.hidden_PD.clone().requires_grad_()
    weights = whole.weight_P.clone()
    weights[2] = 0.0

    torch.autograd.backward(loss(dataclasses.replace(whole, hidden_PD=hidden, weight_P=weights)))

    assert hidden.grad is not None
    assert not hidden.grad[2].any()
    assert hidden.grad[1].any()


@every_loss
def test_a_step_against_the_gradient_makes_it_smaller(loss: Loss) -> None:
    whole = positions()
    hidden = whole.hidden_PD.clone().requires_grad_()
    before = loss(dataclasses.replace(whole, hidden_PD=hidden))
    torch.autograd.backward(before)
    assert hidden.grad is not None

    after = loss(dataclasses.replace(whole, hidden_PD=hidden.detach() - 0.1 * hidden.grad))

    assert after < before


@every_loss
def test_padding_and_rows_not_in_use_take_no_part(loss: Loss) -> None:
    whole = positions()
    table = whole.item_RD.clone()
    table[PADDING] = 50.0
    table[whole.size :] = 50.0

    torch.testing.assert_close(loss(dataclasses.replace(whole, item_RD=table)), loss(whole))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_loss
def test_rows_whose_items_are_gone_take_no_part(loss: Loss, dtype: torch.dtype) -> None:
    """The cost is that of a table without them, and they get no gradient."""
    live_N, gone = torch.tensor([1, 2, 5, 7]), [3, 4, 6]
    alone = dataclasses.replace(
        positions(dtype=dtype),
        target_P=torch.tensor([1, 2, 3, 4, 2]),
        negative=torch.tensor([4, 1, 3]),
        item_RD=positions(dtype=dtype).item_RD[functional.pad(live_N, (1, 0), value=PADDING)],
        size=5,
        log_q_R=None,
    )
    table = torch.full((10, 4), 50.0, dtype=dtype)
    table[live_N] = alone.item_RD[1:]
    table.requires_grad_()
    scattered = dataclasses.replace(
        alone,
        target_P=torch.tensor([1, 2, 5, 7, 2]),
        negative=torch.tensor([7, 1, 5]),
        item_RD=table,
        size=8,
        live_N=live_N,
    )

    cost = loss(scattered)
    torch.autograd.backward(cost)

    torch.testing.assert_close(cost, loss(alone))
    assert table.grad is not None
    assert not table.grad.to_dense()[[PADDING, *gone, 8, 9]].any()
    assert table.grad.to_dense()[live_N].any(dim=1).all()


def test_an_item_that_is_gone_is_no_target() -> None:
    with pytest.raises(IndexError, match="look targets up anew"):
        LOSSES["cross_entropy"](dataclasses.replace(positions(), live_N=torch.tensor([1, 9])))


@every_loss
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_the_order_of_positions_does_not_matter(loss: Loss, seed: int, count: int) -> None:
    whole = positions(seed, count=count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert whole.negative is not None

    turned = dataclasses.replace(
        whole,
        hidden_PD=whole.hidden_PD[order],
        target_P=whole.target_P[order],
        weight_P=whole.weight_P[order],
        negative=whole.negative[order],
    )

    torch.testing.assert_close(loss(turned), loss(whole))


@every_loss
@given(seed=st.integers(0, 10_000), factor=st.floats(0.0, 100.0))
def test_the_cost_goes_with_the_weights_and_is_never_negative(loss: Loss, seed: int, factor: float) -> None:
    whole = dataclasses.replace(positions(seed), log_q_R=None)

    cost = loss(whole)

    assert cost >= 0.0
    torch.testing.assert_close(loss(dataclasses.replace(whole, weight_P=factor * whole.weight_P)), factor * cost)


@every_loss
@given(seed=st.integers(0, 10_000), better=st.floats(0.01, 10.0))
def test_a_target_that_scores_higher_costs_less(loss: Loss, seed: int, better: float) -> None:
    """One hidden unit of 1: the scores are the table, and no negative is the target."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    higher = table.clone()
    higher[1] += better
    one = torch.ones(1, dtype=torch.float64)
    asked = Positions(
        hidden_PD=one[:, None],
        target_P=torch.tensor([1]),
        weight_P=one,
        item_RD=table,
        size=8,
        negative=torch.randint(2, 8, (5,), generator=generator),
    )

    assert loss(dataclasses.replace(asked, item_RD=higher)) < loss(asked)


@every_loss
def test_no_positions_cost_nothing(loss: Loss) -> None:
    none = positions(count=0)

    assert float(loss(none)) == 0.0


@every_loss
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_stay_finite(loss: Loss, scale: float) -> None:
    whole = positions()
    hidden = (whole.hidden_PD * scale).requires_grad_()

    cost = loss(dataclasses.replace(whole, hidden_PD=hidden))
    torch.autograd.backward(cost)

    assert hidden.grad is not None
    assert torch.isfinite(cost)
    assert torch.isfinite(hidden.grad).all()


@sampled_loss
def test_shared_negatives_are_the_same_as_repeated_ones(loss: Loss) -> None:
    shared = torch.tensor([3, 1, 4, 0, 5])

    one = loss(dataclasses.replace(positions(), negative=shared))
    each = loss(dataclasses.replace(positions(), negative=shared.expand(5, 5)))

    torch.testing.assert_close(one, each)


@sampled_loss
def test_a_negative_that_is_the_target_teaches_nothing(loss: Loss) -> None:
    whole = positions()
    hidden = whole.hidden_PD.clone().requires_grad_()
    own = whole.target_P[:, None].expand(5, 6)
    padding = torch.zeros(5, 6, dtype=torch.int64)

    costs = [loss(dataclasses.replace(whole, hidden_PD=hidden, negative=n)) for n in (own, padding)]

    assert torch.equal(*costs)
    assert torch.isfinite(torch.autograd.grad(costs[0], hidden)[0]).all()


@sampled_loss
def test_a_sampled_loss_without_negatives_says_what_to_do(loss: Loss) -> None:
    with pytest.raises(ValueError, match="draw some, or choose cross_entropy"):
        loss(dataclasses.replace(positions(), negative=None))


@sampled_loss
def test_the_item_table_gets_its_gradient_by_the_rows_touched(loss: Loss) -> None:
    whole = positions(dtype=torch.float32)
    table = whole.item_RD.clone().requires_grad_()

    torch.autograd.backward(loss(dataclasses.replace(whole, item_RD=table)))

    assert table.grad is not None
    assert table.grad.is_sparse
    assert not table.grad.to_dense()[PADDING].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_P": torch.ones(1, dtype=torch.float64)},
        {"weight_P": torch.ones(5, 1, dtype=torch.float64)},
        {"target_P": torch.ones(5)},
        {"negative": torch.ones(4, 6, dtype=torch.int64)},
        {"hidden_PD": torch.ones(5, 3, dtype=torch.float64)},
    ],
    ids=["too few weights", "a column of weights", "targets that are no rows", "too few negatives", "other units"],
)
def test_shapes_that_would_broadcast_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeCheckError, BeartypeException)):
        dataclasses.replace(positions(), **wrong)  # type: ignore[arg-type]  # that is the point


def slate(change: Callable[[Tensor], None] | None = None) -> Tensor:
    scores = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, 9.0]], dtype=torch.float64)
    if change is not None:
        change(scores)
    return scores


CLICKED = torch.tensor([[True, False, False, False], [True, True, False, False]])
NEGATIVE = torch.tensor([[False, True, True, False], [False, False, True, False]])
WEIGHTS = torch.tensor([[2.0, 1.0, 1.0, 1.0], [1.0, 3.0, 1.0, 1.0]], dtype=torch.float64)


def test_pairs_are_taken_inside_each_slate() -> None:
    first = 2 * (softplus(1 - 2) + softplus(-1 - 2))
    second = softplus(1 - 0) + 3 * softplus(1 - 3)

    assert float(in_slate_pairs(slate(), CLICKED, NEGATIVE, WEIGHTS)) == pytest.approx((first + second) / 2)


def test_slots_neither_clicked_nor_negative_take_no_part_in_pairs() -> None:
    def disturb(scores: Tensor) -> None:
        scores[:, 3] = 1e9

    scores = slate(disturb).requires_grad_()
    cost = in_slate_pairs(scores, CLICKED, NEGATIVE, WEIGHTS)
    torch.autograd.backward(cost)

    assert scores.grad is not None
    torch.testing.assert_close(cost, in_slate_pairs(slate(), CLICKED, NEGATIVE, WEIGHTS))
    assert not scores.grad[:, 3].any()
    assert torch.isfinite(scores.grad).all()


def test_the_gradient_of_pairs_is_right() -> None:
    scores = slate().requires_grad_()

    assert torch.autograd.gradcheck(lambda s: in_slate_pairs(s, CLICKED, NEGATIVE, WEIGHTS), scores)


def test_a_slate_of_weight_zero_teaches_nothing() -> None:
    scores = slate().requires_grad_()
    weights = WEIGHTS * torch.tensor([[0.0], [1.0]])

    torch.autograd.backward(in_slate_pairs(scores, CLICKED, NEGATIVE, weights))

    assert scores.grad is not None
    assert not scores.grad[0].any()
    assert scores.grad[1].any()


def test_neither_the_order_of_slates_nor_that_of_slots_matters() -> None:
    given = slate(), CLICKED, NEGATIVE, WEIGHTS

    turned = in_slate_pairs(*(one[[1, 0]][:, [2, 0, 3, 1]] for one in given))

    torch.testing.assert_close(turned, in_slate_pairs(*given))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_of_slates_stay_finite(scale: float) -> None:
    scores = (slate() * scale).requires_grad_()

    cost = in_slate_pairs(scores, CLICKED, NEGATIVE, WEIGHTS)
    torch.autograd.backward(cost)

    assert scores.grad is not None
    assert torch.isfinite(cost)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("slates", [0, 2], ids=["no slates", "slates without a click"])
def test_where_nothing_is_to_be_compared_pairs_cost_nothing(slates: int) -> None:
    cost = in_slate_pairs(slate()[:slates], (CLICKED & False)[:slates], NEGATIVE[:slates], WEIGHTS[:slates])

    assert float(cost) == 0.0


@pytest.mark.parametrize(
    "wrong", [WEIGHTS[:, :1], WEIGHTS[:1], WEIGHTS[0]], ids=["a column", "a single slate", "no slates apart"]
)
def test_weights_of_slates_that_would_broadcast_are_refused(wrong: Tensor) -> None:
    with pytest.raises((TypeCheckError, BeartypeException)):
        in_slate_pairs(slate(), CLICKED, NEGATIVE, wrong)


@sampled_loss
@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("shape", [(0,), (5, 0)], ids=["shared", "of each"])
def test_no_negatives_at_all_leave_a_finite_cost(loss: Loss, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        hidden = positions(dtype=dtype).hidden_PD.requires_grad_()
        drawn = torch.empty(shape, dtype=torch.int64)

        cost = loss(dataclasses.replace(positions(dtype=dtype), hidden_PD=hidden, negative=drawn))
        torch.autograd.backward(cost)

        assert torch.isfinite(cost)
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20], ids=["smallest chunks", "some chunks", "one chunk"])
def test_cross_entropy_in_chunks_is_torch_s_own(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_softmax, "CHUNK_SCORES", chunk)
    monkeypatch.setattr(full_softmax, "SMALLEST_CHUNK", 1)
    whole = positions(count=40)
    leaves = [value.clone().requires_grad_() for value in (whole.hidden_PD, whole.item_RD) * 2]

    chunked = LOSSES["cross_entropy"](dataclasses.replace(whole, hidden_PD=leaves[0], item_RD=leaves[1]))
    scores = leaves[2] @ leaves[3][1 : whole.size].T
    plain = torch.dot(functional.cross_entropy(scores, whole.target_P - 1, reduction="none"), whole.weight_P) / 40

    torch.testing.assert_close(chunked, plain)
    gradients = torch.autograd.grad((chunked, plain), leaves)
    torch.testing.assert_close(gradients[:2], gradients[2:])


def test_products_are_of_bfloat16_only_where_the_device_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, found = torch.device("cpu"), kernels()
    has_them = found is not None and found.has_short_products
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation)

    assert full_softmax.fastest_products(cpu) == (torch.bfloat16 if has_them else torch.float32)
    assert full_softmax.fastest_products(torch.device("cuda")) == torch.float32
    monkeypatch.setattr(full_softmax, "kernels", lambda: None)
    assert full_softmax.fastest_products(cpu) == torch.float32


def test_products_in_bfloat16_round_only_their_factors() -> None:
    whole = positions(count=200, dtype=torch.float32)
    hidden_PD, item_RD = whole.hidden_PD.requires_grad_(), whole.item_RD.requires_grad_()

    exact, rounded = (
        LOSSES["cross_entropy"](dataclasses.replace(whole, product_kind=kind)) for kind in (None, torch.bfloat16)
    )

    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.01)
    for leaf in (hidden_PD, item_RD):
        right, wrong = (torch.autograd.grad(cost, leaf, retain_graph=True)[0] for cost in (exact, rounded))
        assert 0.0 < (right - wrong).norm() < 0.02 * right.norm()
