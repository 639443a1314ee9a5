"""Ten seeded steps of every loss: a refactor must not move them, and the same seed gives the same bytes.

`python tests/model/test_golden_losses.py` writes the file for the torch that is installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from model.catalogue import PADDING, SMALLEST_CAPACITY
from model.losses import LOSSES, Positions, in_slate_pairs
from model.negatives import by_popularity
from model.optimiser import RowAdam
from model.sasrec import SASRec
from model.settings import ModelSettings

GOLDEN = Path(__file__).parent / "golden" / f"losses_torch_{torch.__version__.split('+')[0]}.txt"
SETTINGS = ModelSettings(max_length=12, units=16, blocks=2, heads=2, dropout=0.2)
WIDE = SETTINGS.model_copy(update={"units": 258})
MANY_HEADS = SETTINGS.model_copy(update={"heads": 8})
ITEMS = 60
STEPS = 10
PAIRS = "in_slate_pairs"


class Run:
    """A small network that learns to count by sevens; `losses` holds the cost of every step."""

    def __init__(self, loss: str, settings: ModelSettings = SETTINGS) -> None:
        self.model = SASRec(settings, capacity=SMALLEST_CAPACITY, generator=torch.Generator().manual_seed(1))
        self.model.reset_rows(np.arange(1, ITEMS + 1), np.random.default_rng(1))
        self.optimiser = RowAdam(self.model, learning_rate=0.01, max_norm=5.0, weight_decay=0.01)
        self.losses = [self._step(loss, np.random.default_rng([2, step])) for step in range(STEPS)]

    def _step(self, loss: str, rng: np.random.Generator) -> float:
        cost = self._pairs(rng) if loss == PAIRS else self._against_items(loss, rng)
        torch.autograd.backward(cost)
        self.optimiser.step()
        return float(cost.detach())

    def _pairs(self, rng: np.random.Generator) -> Tensor:
        """Of five items shown, the one that comes next by sevens is clicked, and sometimes the last one, too."""
        start_S1 = rng.integers(ITEMS, size=(16, 1))
        rows_SL = torch.from_numpy((start_S1 + 7 * np.arange(11)) % ITEMS + 1)
        shown_SK = torch.from_numpy(rng.integers(1, ITEMS + 1, size=(16, 5)))
        shown_SK[:, 0] = rows_SL[:, -1]
        clicked_SK = torch.zeros(16, 5, dtype=torch.bool)
        clicked_SK[:, 0] = True
        clicked_SK[::4, 4] = True
        hidden_SD = self.model(rows_SL[:, :-1], last=1, rng=rng)[:, 0]
        item_SKD = functional.embedding(shown_SK, self.model.item_RD, padding_idx=PADDING, sparse=True)
        weight_SK = torch.from_numpy(rng.random((16, 5), dtype=np.float32))
        return in_slate_pairs(torch.einsum("sd,skd->sk", hidden_SD, item_SKD), clicked_SK, ~clicked_SK, weight_SK)

    def _against_items(self, loss: str, rng: np.random.Generator) -> Tensor:
        rows_BL = torch.from_numpy((rng.integers(ITEMS, size=(16, 1)) + 7 * np.arange(11)) % ITEMS + 1)
        rows_BL[::3, :4] = PADDING
        wanted_BT = rows_BL[:, :-1] != PADDING
        sampler = by_popularity(np.arange(1, ITEMS + 1), np.arange(ITEMS), alpha=0.75)
        hidden_PD = self.model(rows_BL[:, :-1], rng=rng)[wanted_BT]
        return LOSSES[loss](
            Positions(
                hidden_PD=hidden_PD,
                target_P=rows_BL[:, 1:][wanted_BT],
                weight_P=torch.from_numpy(rng.random(len(hidden_PD), dtype=np.float32)),
                item_RD=self.model.item_RD,
                size=ITEMS + 1,
                negative=sampler.draw((8,), rng),
                log_q_R=sampler.log_q(rows=self.model.capacity),
            )
        )

    def tensors(self) -> bytes:
        """Weights and optimiser state."""
        rows = ITEMS + 1
        return safetensors.torch.save(
            {name: tensor.clone() for name, tensor in self.model.tensors(rows=rows).items()}
            | {name: tensor.clone() for name, tensor in self.optimiser.tensors(rows=rows).items()}
        )


def lines() -> list[str]:
    """Five digits: what another processor rounds differently does not show in ten steps."""
    return [f"{loss}: {' '.join(f'{cost:.4e}' for cost in Run(loss).losses)}" for loss in (*LOSSES, PAIRS)]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden losses for torch {torch.__version__}: write {GOLDEN.name}")
def test_ten_steps_of_every_loss_are_where_they_were() -> None:
    assert lines() == GOLDEN.read_text().splitlines()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("loss", [*LOSSES, PAIRS])
def test_the_same_seed_gives_the_same_bytes(loss: str, threads: int) -> None:
    torch.set_num_threads(threads)

    first, second = Run(loss), Run(loss)

    assert first.tensors() == second.tensors()
    assert first.losses == second.losses


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("settings", [SETTINGS, WIDE, MANY_HEADS], ids=["ordinary", "wide", "many heads"])
@pytest.mark.parametrize("loss", [*LOSSES, PAIRS])
def test_more_threads_give_the_bytes_of_one(loss: str, settings: ModelSettings) -> None:
    """Wide networks and those of many heads are torch's alone."""
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(Run(loss, settings))

    assert all(run.tensors() == runs[0].tensors() for run in runs[1:])
    assert all(run.losses == runs[0].losses for run in runs[1:])


@pytest.mark.parametrize("loss", [*LOSSES, PAIRS])
def test_learning_lowers_the_cost(loss: str) -> None:
    costs = Run(loss).losses

    assert np.mean(costs[-3:]) < np.mean(costs[:3])


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join(lines()) + "\n")
