"""One of several processes that learn together: crew_member.py FILE, with what torchrun puts into the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from model.settings import ModelSettings
from stream.examples import ClickExample, Example, ExampleId, Served, ShownItem, SlateExample
from tests.trainer.clicks import clicks
from trainer.crew import ALONE, Crew, crew_of
from trainer.learner import Learner
from trainer.settings import TrainerSettings

MODEL = ModelSettings(max_length=8, units=16, blocks=1, dropout=0.0)
SETTINGS = {
    "whole": TrainerSettings(learning_rate=0.01, replay_choice="herding"),
    "drawn": TrainerSettings(learning_rate=0.01, loss="bce", negatives=16, new_rows="neighbours"),
}
"""Softmax over all items, whose gradient is that of all rows; and a loss whose gradient has the rows touched."""
BATCH, BATCHES = 64, 12


def batches() -> Iterator[list[Example]]:
    """Clicks, of which some were served, and now and then a slate; items keep coming."""
    made = clicks(BATCH * BATCHES, items=100)
    for number in range(BATCHES):
        batch = made[number * BATCH : (number + 1) * BATCH]
        some_served = [served(one) if index % 7 == 0 else one for index, one in enumerate(batch)]
        yield [*some_served, slate(number, batch[-1])]
    yield list(clicks(1, seed=9, first_offset=BATCH * BATCHES))


def served(click: ClickExample) -> ClickExample:
    how = Served("softmax", "r", 1, 0.1 + click.id.offset % 5 / 10, "exact", "exploit")
    return ClickExample(
        click.id, click.user_id, click.context, click.item_id, click.timestamp_ms, click.arrived_at_ms, how
    )


def slate(number: int, after: ClickExample) -> SlateExample:
    items = tuple(
        ShownItem(item, place, 0.2, "exact", "exploit", seen=True, clicked=place == 1)
        for place, item in enumerate(after.context[:4])
    )
    where = ExampleId("impressions", 0, number, 0)
    return SlateExample(where, after.user_id, after.context, f"r{number}", "softmax", items, 1, 1)


def learnt(name: str, crew: Crew = ALONE) -> dict[str, np.ndarray]:
    """The losses, what was foreseen, the weights and the catalogue, after all batches."""
    torch.set_num_threads(1)
    learner = Learner(MODEL, SETTINGS[name], crew=crew)
    losses = [learner.learn(batch).stepped.loss for batch in batches()]
    weights = learner.network.tensors(rows=learner.catalogue.size)
    return {
        "losses": np.array(losses),
        "foreseen": np.array(learner.prequential.cumulative("sasrec")),
        "items": np.array([learner.catalogue.row_of(f"item-{number}") for number in range(100)]),
        "replayed": np.array(sorted(learner.replay.users)),
        "random state": np.frombuffer(learner.random_state(), dtype=np.uint8),
    } | {name: tensor.numpy() for name, tensor in weights.items()}


def gradients(rank: int) -> list[torch.Tensor | None]:
    """What a process may have found for the item table: rows touched, some of them twice; nothing; or all rows."""
    rows = torch.tensor([[rank, 3, 3]])
    touched = torch.sparse_coo_tensor(rows, torch.full((3, 16), 1.0 + rank), (1_024, 16), check_invariants=True)
    return [touched, touched if rank else None, touched if rank else torch.ones(1_024, 16), None]


def added(crew: Crew) -> np.ndarray:
    """What the crew makes of each kind of gradient."""
    learner, found = Learner(MODEL, SETTINGS["whole"]), []
    for gradient in gradients(crew.rank):
        learner.network.item_RD.grad = gradient
        crew.add_up(learner.network)
        assert learner.network.item_RD.grad is not None
        found.append(learner.network.item_RD.grad.to_dense())
    return torch.stack(found).numpy()


def main(path: str) -> None:
    with crew_of(os.environ) as crew:
        found = {f"{name}/{key}": array for name in SETTINGS for key, array in learnt(name, crew).items()}
        found["added"] = added(crew)
        np.savez(Path(f"{path}.{crew.rank}"), **found)  # type: ignore[arg-type]  # its stub wants a name for each


if __name__ == "__main__":
    main(*sys.argv[1:])
