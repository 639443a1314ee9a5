"""What the network may look at, and what must not change what it says."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from model.catalogue import PADDING
from model.sasrec import SASRec
from model.settings import ModelSettings

SETTINGS = [
    ModelSettings(max_length=6, units=8, blocks=blocks, heads=heads, norm=norm, dropout=0.5)
    for blocks, heads, norm in itertools.product((0, 1, 3), (1, 2), ("pre", "post"))
]
ROWS = torch.tensor([[0, 0, 3, 1, 2], [4, 5, 6, 7, 8], [0, 0, 0, 0, 1]])
VALID = ROWS != PADDING


def network(settings: ModelSettings, *, capacity: int = 10, seed: int = 1) -> SASRec:
    model = SASRec(settings, capacity=capacity, generator=torch.Generator().manual_seed(seed))
    model.reset_rows(np.arange(1, capacity), np.random.default_rng(seed))
    return model


@pytest.fixture(params=["as it comes", "torch", "torch, fixed shapes"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By native kernels where there are any; by torch, without padding's cost or in few shapes."""
    if request.param != "as it comes":
        monkeypatch.setattr("model.sasrec.runs_natively", lambda *_, **__: False)
    return str(request.param)


@pytest.fixture(params=SETTINGS, ids=lambda s: f"{s.blocks} blocks, {s.heads} heads, {s.norm}-norm")
def model(request: pytest.FixtureRequest, path: str) -> SASRec:
    made = network(request.param)
    made.has_fixed_shapes = path == "torch, fixed shapes"
    return made


def test_every_position_gets_a_finite_state(model: SASRec) -> None:
    hidden = model(ROWS)

    assert hidden.shape == (3, 5, 8)
    assert torch.isfinite(hidden).all()


def test_what_stands_in_padded_slots_moves_nothing(model: SASRec) -> None:
    before = model(ROWS)[VALID]

    with torch.no_grad():
        model.item_RD[PADDING] = 1_000.0

    assert torch.equal(model(ROWS)[VALID], before)


def test_what_stands_in_padded_slots_teaches_nothing(model: SASRec) -> None:
    gradients = []
    for padding in (0.0, 1_000.0):
        with torch.no_grad():
            model.item_RD[PADDING] = padding
        model.zero_grad(set_to_none=True)
        model(ROWS, rng=np.random.default_rng(5))[VALID].square().sum().backward()
        gradients.append([one.grad.to_dense().clone() for one in model.parameters() if one.grad is not None])

    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert not gradients[0][0][PADDING].any()


def test_more_padding_moves_nothing(model: SASRec) -> None:
    shorter = model(ROWS[:, 2:])

    torch.testing.assert_close(model(ROWS)[[0, 2], 2:][VALID[[0, 2], 2:]], shorter[[0, 2]][VALID[[0, 2], 2:]])


def test_a_later_item_never_moves_an_earlier_position(model: SASRec) -> None:
    before = model(ROWS)

    for position in range(1, ROWS.shape[1]):
        changed = ROWS.clone()
        changed[:, position] = 9
        earlier = VALID & (torch.arange(ROWS.shape[1]) < position)
        assert torch.equal(model(changed)[earlier], before[earlier])


def test_an_earlier_item_moves_every_later_position() -> None:
    model = network(ModelSettings(max_length=6, units=8, blocks=1))
    changed = ROWS.clone()
    changed[1, 0] = 9

    moved = (model(changed)[1] != model(ROWS)[1]).any(dim=1)

    assert moved.all()


def test_another_sequence_of_the_batch_moves_nothing(model: SASRec) -> None:
    torch.testing.assert_close(model(ROWS)[1], model(ROWS[1:2])[0])


@pytest.mark.parametrize("last", [1, 2, 5])
def test_the_last_positions_alone_are_the_same(model: SASRec, last: int) -> None:
    torch.testing.assert_close(model(ROWS, last=last), model(ROWS)[:, -last:])


@pytest.mark.parametrize("last", [-1, 0, 6])
def test_more_slots_than_there_are_cannot_be_asked_for(model: SASRec, last: int) -> None:
    with pytest.raises(ValueError, match="ask for 1 to 5"):
        model(ROWS, last=last)


def test_nothing_comes_out_of_nothing(model: SASRec) -> None:
    nothing = torch.zeros(2, 3, dtype=torch.int64)

    assert not model(nothing).any()
    assert not model.encode_last(nothing).any()
    assert model(nothing[:0]).shape == (0, 3, 8)


def test_padding_between_items_moves_nothing(model: SASRec) -> None:
    torch.testing.assert_close(model(torch.tensor([[3, 0, 1, 2, 0]]))[0, [0, 2, 3]], model(ROWS)[0, 2:])


def test_states_at_chosen_slots_are_those_of_the_whole(model: SASRec) -> None:
    wanted = torch.tensor([[True, False, False, True, True], [False, True, False, True, False], [False] * 5])

    torch.testing.assert_close(model.states_at(ROWS, wanted), model(ROWS)[wanted])


def test_prediction_is_the_last_position(model: SASRec) -> None:
    torch.testing.assert_close(model.encode_last(ROWS), model(ROWS)[:, -1].detach())


def test_short_products_round_the_states_a_little_and_leave_them_float32(
    model: SASRec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.sasrec.runs_natively", lambda *_, **__: False)
    exact = model(ROWS)

    model.has_short_products = True
    rounded = model(ROWS)
    torch.autograd.backward(rounded.sum())

    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_fixed_shapes_change_no_state_and_no_gradient(
    dropout: float, model: SASRec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.sasrec.runs_natively", lambda *_, **__: False)
    model.settings = model.settings.model_copy(update={"dropout": dropout})
    wanted = torch.tensor([[True, False, False, True, True], [False, True, False, True, False], [False] * 5])
    found = []
    for model.has_fixed_shapes in (False, True):
        states = model.states_at(ROWS, wanted, rng=np.random.default_rng(1))
        torch.autograd.backward((states * torch.linspace(-1.0, 1.0, states.numel()).view_as(states)).sum())
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append([states.detach(), *(grad.to_dense() for grad in gradients)])
        model.zero_grad(set_to_none=True)

    for padded, as_they_come in zip(*found, strict=True):
        torch.testing.assert_close(padded, as_they_come, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_order_of_items_matters(norm: Literal["pre", "post"]) -> None:
    model = network(ModelSettings(max_length=6, units=8, norm=norm))
    swapped = ROWS[1:2, [1, 0, 2, 3, 4]]

    assert not torch.allclose(model(swapped)[0, -1], model(ROWS[1:2])[0, -1])


def test_more_positions_than_the_model_knows_are_refused() -> None:
    model = network(SETTINGS[0])

    with pytest.raises(ValueError, match="pass only the newest"):
        model(torch.ones(1, 7, dtype=torch.int64))


def test_the_newest_item_always_stands_at_the_last_position(model: SASRec) -> None:
    """A position embedding that only the last slot may use moves every last slot, whatever the batch's length."""
    before = [model(ROWS[1:2, -length:]).detach() for length in (1, 5)]

    with torch.no_grad():
        model.position_TD[-1] += torch.arange(8.0)

    for length, unmoved in zip((1, 5), before, strict=True):
        moved = (model(ROWS[1:2, -length:]) != unmoved)[0].any(dim=1)
        assert moved.tolist() == [False] * (length - 1) + [True]


def test_the_same_seed_gives_the_same_bytes(model: SASRec) -> None:
    twin = network(model.settings)

    for name, tensor in model.tensors(rows=10).items():
        assert torch.equal(tensor, twin.tensors(rows=10)[name])
    first, second = (m(ROWS, rng=np.random.default_rng(7)) for m in (model, twin))
    assert torch.equal(first, second)


def test_dropout_needs_a_generator_and_changes_with_it() -> None:
    model = network(ModelSettings(max_length=6, units=8, dropout=0.5))

    assert torch.equal(model(ROWS), model(ROWS))
    assert not torch.equal(model(ROWS, rng=np.random.default_rng(1)), model(ROWS, rng=np.random.default_rng(2)))


def test_growth_keeps_every_learnt_row_bit_for_bit(model: SASRec) -> None:
    table, hidden = model.item_RD.detach().clone(), model(ROWS)

    model.grow(16)

    assert model.capacity == 16
    assert torch.equal(model.item_RD[:10], table)
    assert not model.item_RD[10:].any()
    assert torch.equal(model(ROWS), hidden)


def test_the_table_never_shrinks() -> None:
    model = network(SETTINGS[0])

    model.grow(5)

    assert model.capacity == 10


def test_a_row_begins_the_same_whenever_the_table_grew() -> None:
    late, early = network(SETTINGS[0], capacity=4), network(SETTINGS[0], capacity=4)
    early.grow(64)
    late.grow(8)

    for model in (late, early):
        model.reset_rows(np.array([5, 6]), np.random.default_rng(3))

    assert torch.equal(late.item_RD[:8], early.item_RD[:8])


def test_the_padding_row_is_never_given_a_beginning() -> None:
    model = network(SETTINGS[0])

    with pytest.raises(AssertionError, match="padding"):
        model.reset_rows(np.array([PADDING, 1]), np.random.default_rng(3))


def test_the_padding_row_gets_no_gradient(model: SASRec) -> None:
    model(ROWS).square().sum().backward()

    assert model.item_RD.grad is not None
    assert not model.item_RD.grad.to_dense()[PADDING].any()


def test_a_network_is_the_same_after_it_was_stored(model: SASRec) -> None:
    stored = {name: tensor.clone() for name, tensor in model.tensors(rows=9).items()}

    read = SASRec.from_tensors(model.settings, stored, capacity=32)

    assert read.capacity == 32
    assert torch.equal(read(ROWS), model(ROWS))


def test_weights_of_another_shape_are_refused() -> None:
    tensors = network(ModelSettings(max_length=6, units=8)).tensors(rows=10)

    with pytest.raises(ValueError, match="use another checkpoint"):
        SASRec.from_tensors(ModelSettings(max_length=7, units=8), tensors, capacity=10)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_first_scores_are_small_so_that_the_first_steps_are_calm(norm: Literal["pre", "post"]) -> None:
    model = network(ModelSettings(norm=norm), capacity=500)

    scores: Tensor = model(torch.arange(1, 251).view(5, 50)) @ model.item_RD.T

    assert scores.std() < 0.5
