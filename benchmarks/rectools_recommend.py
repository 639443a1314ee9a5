"""RecTools' own `recommend`: run by the peers' Python, timed beside ours.

A SASRec with its defaults but our shape learns for one pass over users of MovieLens' lengths (how well does not matter
here), then recommends to some of them, what they had left out. Prints the seconds of each call by the number of users.
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
    """Learns, recommends, answers."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    dataset = dataset_of(settings)
    model = SASRecModel(
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["units"],
        session_max_len=settings["max_length"],
        epochs=1,
        recommend_torch_device="cpu",
        recommend_batch_size=max(settings["batches"]),
    )
    model.fit(dataset)
    print(json.dumps({str(users): seconds_of(model, dataset, users, settings) for users in settings["batches"]}))


def dataset_of(settings: dict[str, Any]) -> Dataset:
    """As many users as the largest batch, and every item at least once."""
    rng = np.random.default_rng(1)
    lengths = settings["lengths"]
    clicks = [
        (user, item) for user, length in enumerate(lengths) for item in rng.integers(1, settings["items"] + 1, length)
    ]
    clicks += [(len(lengths) + item // 50, item) for item in range(1, settings["items"] + 1)]
    table = pd.DataFrame(clicks, columns=[Columns.User, Columns.Item])
    table[Columns.Weight] = 1.0
    table[Columns.Datetime] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(table)), unit="s")
    return Dataset.construct(table)


def seconds_of(model: Any, dataset: Dataset, users: int, settings: dict[str, Any]) -> list[float]:  # noqa: ANN401 - it has no types
    """Of every call but the first."""
    taken = []
    for _ in range(settings["rounds"] + 1):
        began = time.perf_counter()
        model.recommend(users=list(range(users)), dataset=dataset, k=settings["k"], filter_viewed=True)
        taken.append(time.perf_counter() - began)
    return taken[1:]


if __name__ == "__main__":
    main()
