"""RecTools' own SASRec, one training step at a time: run by the peers' Python, timed beside ours.

It reads the name of a file with a padded batch a line from standard input, and answers with the seconds of the step.
The network, the loss and the optimiser are those that RecTools makes for `SASRecModel(loss="BCE")`; what it needs to
prepare batches and to keep its accounts is not timed. Shapes: B sequences, T positions.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    """Answers until standard input ends."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    module, optimiser = make(settings)
    for line in sys.stdin:
        print(json.dumps(seconds_of_step(module, optimiser, line.strip())), flush=True)


def make(settings: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    """RecTools' Lightning module over so many items, and the optimiser that it asks for."""
    torch.manual_seed(1)
    model = SASRecModel(
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["units"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["max_length"],
        batch_size=settings["batch"],
        lr=settings["learning_rate"],
        loss="BCE",
        n_negatives=1,
        deterministic=False,
    )
    item_N = np.arange(1, settings["items"] + 1)
    clicks = pd.DataFrame(
        {
            Columns.User: item_N // 50,
            Columns.Item: item_N,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2026-01-01") + pd.to_timedelta(item_N, unit="s"),
        }
    )
    # The steps of its own `fit`, without its loop.
    model._build_model_from_dataset(Dataset.construct(clicks))  # noqa: SLF001 - there is no public way
    module = model.lightning_model
    module.on_train_start()
    module.train()
    module.log = lambda *_, **__: None  # its loop would be needed
    return module, module.configure_optimizers()


def seconds_of_step(module: Any, optimiser: torch.optim.Optimizer, file: str) -> float:  # noqa: ANN401 - it has no types
    """Learns the batch in the file: rows x, targets y and one negative for each position."""
    with np.load(file) as arrays:
        batch = {name: torch.from_numpy(arrays[name]) for name in ("x", "y", "negatives")}
    batch["yw"] = (batch["y"] != 0).float()
    start = time.perf_counter()
    optimiser.zero_grad()
    torch.autograd.backward(module.training_step(batch, 0))
    optimiser.step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
