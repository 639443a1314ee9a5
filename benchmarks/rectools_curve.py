"""RecTools' own SASRec, learnt pass by pass on the data of `benchmarks.accuracy`: run by the peers' Python.

It takes the name of a file with the split and its settings as JSON, learns until so many seconds are spent by one clock
or the other, and prints after every pass a line with all that it foresaw so far, and the test of the pass that foresaw
the validation items best. The network, the loss (softmax over all items), the optimiser and the preparation of batches
are RecTools', and a pass goes on from the one before with the optimiser's state; so is the ranking, among the items
that a user does not have.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

CUT_OFF = 10
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Learns, looks, and prints."""
    settings = json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    with np.load(Path(sys.argv[1])) as arrays:
        split = dict(arrays)
    learnt = Dataset.construct(clicks(split["user_N"], split["item_N"]))
    with_validation = Dataset.construct(
        clicks(
            np.concatenate((split["user_N"], split["user_B"])), np.concatenate((split["item_N"], split["validation_B"]))
        )
    )
    model = SASRecModel(
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["units"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["max_length"],
        loss="softmax",
    )
    points: list[dict[str, float]] = []
    test: dict[str, float] = {}
    spent = dict.fromkeys(CLOCKS, 0.0)
    while spent[settings["clock"]] < settings["seconds"]:
        began = {name: now() for name, now in CLOCKS.items()}
        model.fit_partial(learnt, min_epochs=1, max_epochs=1)
        spent = {name: spent[name] + now() - began[name] for name, now in CLOCKS.items()}
        seen = foreseen(model, learnt, split["user_B"], split["validation_B"])
        points.append({"passes": len(points) + 1, "cpu_seconds": spent["cpu"], "wall_seconds": spent["wall"]} | seen)
        if seen["ndcg"] >= max(point["ndcg"] for point in points):
            test = foreseen(model, with_validation, split["user_B"], split["test_B"])
        parameters = sum(weight.numel() for weight in model.lightning_model.torch_model.parameters())
        print(json.dumps({"points": points, "test": test, "parameters": parameters}), flush=True)


def clicks(user_N: np.ndarray, item_N: np.ndarray) -> pd.DataFrame:
    """In the order given: RecTools sorts by time."""
    return pd.DataFrame(
        {
            Columns.User: user_N,
            Columns.Item: item_N,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(user_N)), unit="s"),
        }
    )


def foreseen(model: Any, dataset: Dataset, user_B: np.ndarray, target_B: np.ndarray) -> dict[str, float]:  # noqa: ANN401 - RecTools' own
    """HR@10 and NDCG@10 over the whole catalogue."""
    slates = model.recommend(users=user_B, dataset=dataset, k=CUT_OFF, filter_viewed=True)
    target = slates[Columns.User].map(dict(zip(user_B.tolist(), target_B.tolist(), strict=True)))
    rank_H = slates.loc[slates[Columns.Item] == target, Columns.Rank].to_numpy()
    return {"hr": len(rank_H) / len(user_B), "ndcg": float((1.0 / np.log2(rank_H + 1.0)).sum()) / len(user_B)}


if __name__ == "__main__":
    main()
