"""The same network, loss and step on a CUDA device as on the CPU, within a stated tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.catalogue import PADDING
from model.losses import LOSSES, Positions
from model.moving import moved
from model.optimiser import RowAdam
from model.ranking import rank_of, top_k
from model.sasrec import SASRec
from model.settings import ModelSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

SETTINGS = ModelSettings(max_length=16, units=32, heads=2, dropout=0.2)
ITEMS = 200
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Other kernels add in another order; TF32 stays off."""


def network(device: str) -> SASRec:
    model = SASRec(SETTINGS, capacity=256, generator=torch.Generator().manual_seed(1)).to(device)
    model.reset_rows(np.arange(1, ITEMS + 1), np.random.default_rng(1))
    return model


def sequences() -> torch.Tensor:
    rows_BT = torch.from_numpy(np.random.default_rng(3).integers(1, ITEMS + 1, size=(8, 12)))
    rows_BT[::2, :5] = PADDING
    return rows_BT


def step(device: str, loss: str) -> tuple[float, dict[str, torch.Tensor]]:
    model = network(device)
    optimiser = RowAdam(model, learning_rate=0.01, max_norm=5.0)
    rows_BT = sequences().to(device)
    hidden_BTD = model(rows_BT, rng=np.random.default_rng(4))
    cost = LOSSES[loss](
        Positions(
            hidden_PD=hidden_BTD[:, -1],
            target_P=rows_BT[:, 0].clamp(min=1),
            weight_P=torch.ones(8, device=device),
            item_RD=model.item_RD,
            size=ITEMS + 1,
            negative=torch.arange(1, 33, device=device),
        )
    )
    torch.autograd.backward(cost)
    optimiser.step()
    return float(cost.detach()), {name: tensor.cpu() for name, tensor in model.tensors(rows=ITEMS + 1).items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_on_cuda_is_the_step_on_the_cpu(loss: str) -> None:
    cost_cpu, weights_cpu = step("cpu", loss)
    cost_cuda, weights_cuda = step("cuda", loss)

    assert cost_cuda == pytest.approx(cost_cpu, rel=RELATIVE)
    for name, weight in weights_cpu.items():
        torch.testing.assert_close(weights_cuda[name], weight, rtol=RELATIVE, atol=ABSOLUTE, msg=name)


def test_products_of_bfloat16_on_cuda_round_the_states_a_little() -> None:
    """Norms keep states near one; eight bits of each product's factors remain."""
    model = network("cuda")
    exact = model(sequences().to("cuda"))

    model.has_short_products = True

    torch.testing.assert_close(model(sequences().to("cuda")), exact, rtol=0.05, atol=0.05)


def test_compiled_blocks_of_fixed_shapes_give_the_states_and_gradients_of_others() -> None:
    found = []
    for has_fixed_shapes in (False, True):
        model = network("cuda")
        model.has_fixed_shapes = has_fixed_shapes
        states = model(sequences().to("cuda"), rng=np.random.default_rng(4))
        torch.autograd.backward(states.square().sum())
        found.append([states.detach(), *(block.inner.weight.grad for block in model._blocks())])

    for fixed, as_they_come in zip(*found, strict=True):
        torch.testing.assert_close(fixed, as_they_come, rtol=RELATIVE, atol=ABSOLUTE)


def test_prediction_and_ranking_on_cuda_are_those_on_the_cpu() -> None:
    live_R = torch.ones(256, dtype=torch.bool)
    live_R[ITEMS + 1 :] = False
    found = {}
    for device in ("cpu", "cuda"):
        model = network(device)
        rows_BT = sequences().to(device)
        hidden_BD = model.encode_last(rows_BT)
        best = top_k(hidden_BD, model.item_RD.detach(), k=10, excluded_BE=rows_BT, live_R=live_R.to(device))
        ranks = rank_of(
            hidden_BD,
            model.item_RD.detach(),
            target_P=best.row_BK[:, 0],
            excluded_PE=rows_BT,
            live_R=live_R.to(device),
        )
        found[device] = (hidden_BD.cpu(), best.score_BK.cpu(), ranks.cpu())

    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=RELATIVE, atol=ABSOLUTE)
    torch.testing.assert_close(found["cuda"][1], found["cpu"][1], rtol=RELATIVE, atol=ABSOLUTE)
    assert not found["cuda"][2].any()


def test_what_goes_to_a_gpu_goes_from_pinned_memory_and_arrives_as_it_was() -> None:
    rows_BT = sequences()

    there = moved(rows_BT, torch.device("cuda"))

    assert there.is_cuda
    assert torch.equal(there.cpu(), rows_BT)
    assert moved(there, there.device) is there


def test_the_dense_weights_are_learnt_by_the_fused_optimiser_on_the_gpu() -> None:
    model = network("cuda")
    optimiser = RowAdam(model, learning_rate=0.01)

    torch.autograd.backward(model(sequences().to("cuda")).square().sum())

    assert optimiser.step() > 0.0
    assert all(group["fused"] for group in optimiser._adam.param_groups)
