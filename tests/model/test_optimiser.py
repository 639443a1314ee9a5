"""Row-wise Adam beside torch's dense AdamW on the same gradients: where they agree, and by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.optimiser import LONGEST_STEP, RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings

SETTINGS = ModelSettings(max_length=4, units=4, blocks=1)
ROWS = 12
RATE = 0.01


def network(*, capacity: int = ROWS) -> SASRec:
    model = SASRec(SETTINGS, capacity=capacity, generator=torch.Generator().manual_seed(1))
    model.reset_rows(np.arange(1, ROWS), np.random.default_rng(1))
    return model


def gradients(count: int, *, rows: Iterable[int] = range(1, ROWS)) -> list[Tensor]:
    """Of the item table, zero but in `rows`."""
    generator = torch.Generator().manual_seed(2)
    table = torch.zeros(count, ROWS, SETTINGS.units)
    table[:, list(rows)] = torch.randn(count, len(list(rows)), SETTINGS.units, generator=generator)
    return list(table)


def sparse(gradient: Tensor) -> Tensor:
    """Only the rows that are not zero."""
    rows = gradient.any(dim=1).nonzero()[:, 0]
    return torch.sparse_coo_tensor(rows[None], gradient[rows], gradient.shape, check_invariants=True)


def learn(model: SASRec, optimiser: RowAdam, gradient: Tensor) -> float:
    model.item_RD.grad = gradient
    return optimiser.step()


def dense_adam(model: SASRec, steps: list[Tensor], *, weight_decay: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The table and the state after torch's own AdamW."""
    weight = torch.nn.Parameter(model.item_RD.detach().clone())
    adam = torch.optim.AdamW([weight], lr=RATE, weight_decay=weight_decay)
    for gradient in steps:
        weight.grad = gradient.clone()
        adam.step()
    return weight.detach(), adam.state[weight]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("form", [sparse, torch.clone], ids=["sparse gradient", "dense gradient"])
def test_rows_touched_in_every_step_learn_as_by_dense_adam(form: type, weight_decay: float) -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE, weight_decay=weight_decay)
    expected, _ = dense_adam(model, gradients(30), weight_decay=weight_decay)

    for gradient in gradients(30):
        learn(model, optimiser, form(gradient))

    torch.testing.assert_close(model.item_RD.detach()[1:], expected[1:], rtol=1e-5, atol=1e-7)


def test_a_row_that_sat_out_has_the_moments_of_dense_adam_and_differs_by_the_glide() -> None:
    """Touched in steps 1 to 5 and 16: between them dense Adam glides on, at most nine steps' length."""
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    steps = [*gradients(5), *gradients(10, rows=[]), *gradients(1)]
    expected, state = dense_adam(model, steps)

    for gradient in steps:
        learn(model, optimiser, sparse(gradient))

    stored = optimiser.tensors(rows=ROWS)
    torch.testing.assert_close(stored["table.first_RD"][1:], state["exp_avg"][1:], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stored["table.second_RD"][1:], state["exp_avg_sq"][1:], rtol=1e-5, atol=1e-7)
    glide = RATE * 0.9 / (1 - 0.9 / 0.999**0.5)
    difference = (model.item_RD.detach() - expected)[1:].abs()
    assert 0.0 < float(difference.max()) < glide


@pytest.mark.parametrize(
    ("growth", "longest"), [([1.0], 0.1 / 0.001**0.5), ([0.9**n for n in range(80, -1, -1)], LONGEST_STEP)]
)
def test_the_glide_after_a_long_silence_is_within_its_bound(growth: list[float], longest: float) -> None:
    """A row that gets one gradient, or ever larger ones, after 3,000 steps that touched another."""
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    elsewhere, here = (torch.zeros(ROWS, SETTINGS.units).index_fill(0, torch.tensor([row]), 1.0) for row in (5, 3))
    steps = [elsewhere] * 3_000 + [size * here for size in growth] + [elsewhere] * 80
    expected, _ = dense_adam(model, steps)

    for gradient in steps:
        learn(model, optimiser, sparse(gradient))

    ratio = 0.9 / 0.999**0.5
    glide = float((model.item_RD.detach() - expected)[3].abs().max())
    assert 0.9 * longest < glide / RATE / (ratio / (1 - ratio)) < 1.001 * longest


@pytest.mark.parametrize("last_rate", [RATE, RATE / 100])
def test_weight_decay_that_was_sat_out_is_made_up_for_at_the_rate_of_the_day(last_rate: float) -> None:
    """Touched in the first and the last of 102 steps: dense AdamW shrinks the row in each, at the rate it then has."""
    decay, idle = 0.1, 100
    shrunk = []
    for weight_decay in (decay, 0.0):
        model = network()
        optimiser = RowAdam(model, learning_rate=RATE, weight_decay=weight_decay)
        learn(model, optimiser, sparse(gradients(1)[0]))
        for gradient in gradients(idle, rows=[5]):
            learn(model, optimiser, sparse(gradient))
        before = model.item_RD.detach()[3].clone()
        optimiser.learning_rate = last_rate
        learn(model, optimiser, sparse(gradients(1)[0]))
        shrunk.append((before, model.item_RD.detach()[3] - before))

    (before, with_decay), (_, without) = shrunk
    kept = (1 - last_rate * decay) ** (idle + 1)
    torch.testing.assert_close(with_decay - without, (kept - 1) * before, rtol=1e-3, atol=1e-7)


def test_rows_that_are_not_touched_stay_bit_for_bit() -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE, weight_decay=0.1)
    learn(model, optimiser, sparse(gradients(1)[0]))
    before = model.item_RD.detach().clone()

    learn(model, optimiser, sparse(gradients(1, rows=[3, 5])[0]))

    moved = (model.item_RD.detach() != before).any(dim=1).nonzero()[:, 0]
    assert moved.tolist() == [3, 5]


def test_a_row_that_occurs_often_in_a_step_learns_from_the_sum() -> None:
    once, often = network(), network()
    gradient = gradients(1, rows=[4])[0]
    halves = torch.sparse_coo_tensor(
        torch.tensor([[4, 4]]), gradient[[4, 4]] / 2, gradient.shape, check_invariants=True
    )

    learn(once, RowAdam(once, learning_rate=RATE), sparse(gradient))
    learn(often, RowAdam(often, learning_rate=RATE), halves)

    torch.testing.assert_close(once.item_RD, often.item_RD)


def test_the_first_step_of_a_new_row_has_ordinary_length() -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    for gradient in gradients(50):
        learn(model, optimiser, sparse(gradient))
    optimiser.reset_rows(np.array([7]))
    before = model.item_RD.detach()[7].clone()

    learn(model, optimiser, sparse(gradients(1, rows=[7])[0]))

    torch.testing.assert_close((model.item_RD.detach()[7] - before).abs(), torch.full((4,), RATE), rtol=1e-3, atol=0.0)


def whole_step(model: SASRec, optimiser: RowAdam, *, scale: float = 1.0) -> float:
    rows = torch.tensor([[1, 2, 3, 4], [0, 5, 6, 7]])
    torch.autograd.backward((model(rows).square().sum() * scale,))
    return optimiser.step()


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_forgotten(scale: float) -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    whole_step(model, optimiser)
    before = copied(model.tensors(rows=ROWS) | optimiser.tensors(rows=ROWS))

    norm = whole_step(model, optimiser, scale=scale)

    assert not math.isfinite(norm)
    after = model.tensors(rows=ROWS) | optimiser.tensors(rows=ROWS)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(weight.grad is None for weight in model.parameters())
    assert math.isfinite(whole_step(model, optimiser))


def test_gradients_are_shortened_together() -> None:
    """Adam forgets a gradient's length in its first step, so the moments must tell."""
    free, bound = network(), network()
    loose, tight = RowAdam(free, learning_rate=RATE), RowAdam(bound, learning_rate=RATE, max_norm=0.5)

    norm = whole_step(free, loose)
    assert whole_step(bound, tight) == norm > 0.5

    for name, tensor in loose.tensors(rows=ROWS).items():
        if "first" in name or name.startswith("dense.exp_avg."):
            torch.testing.assert_close(tight.tensors(rows=ROWS)[name], tensor * 0.5 / norm, rtol=1e-4, atol=1e-9)


def test_the_learning_rate_may_change_between_steps() -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    before = copied(model.tensors(rows=ROWS))

    optimiser.learning_rate = 0.0
    whole_step(model, optimiser)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors(rows=ROWS).items())


def test_growth_keeps_weights_and_state_bit_for_bit() -> None:
    grown, plain = network(), network(capacity=64)
    optimisers = RowAdam(grown, learning_rate=RATE), RowAdam(plain, learning_rate=RATE)
    whole_step(grown, optimisers[0])
    whole_step(plain, optimisers[1])

    grown.grow(64)
    optimisers[0].grow()
    whole_step(grown, optimisers[0])
    whole_step(plain, optimisers[1])

    assert torch.equal(grown.item_RD, plain.item_RD)
    twin = optimisers[1].tensors(rows=64)
    assert all(torch.equal(tensor, twin[name]) for name, tensor in optimisers[0].tensors(rows=64).items())


def test_a_restart_goes_on_with_the_same_bytes() -> None:
    model = network()
    optimiser = RowAdam(model, learning_rate=RATE)
    for _ in range(3):
        whole_step(model, optimiser)
    weights, state = copied(model.tensors(rows=ROWS)), copied(optimiser.tensors(rows=ROWS))

    restarted = SASRec.from_tensors(SETTINGS, weights, capacity=64)
    resumed = RowAdam(restarted, learning_rate=RATE)
    resumed.load_tensors(state)
    for _ in range(3):
        whole_step(model, optimiser)
        whole_step(restarted, resumed)

    assert resumed.steps == optimiser.steps == 6
    assert all(torch.equal(restarted.tensors(rows=ROWS)[name], t) for name, t in model.tensors(rows=ROWS).items())
    assert all(torch.equal(resumed.tensors(rows=ROWS)[name], t) for name, t in optimiser.tensors(rows=ROWS).items())


def test_state_before_the_first_step_can_be_stored() -> None:
    model = network()
    resumed = RowAdam(model, learning_rate=RATE)

    resumed.load_tensors(RowAdam(model, learning_rate=RATE).tensors(rows=ROWS))

    assert resumed.steps == 0
    assert math.isfinite(whole_step(model, resumed))
