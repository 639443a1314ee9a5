"""A large catalogue that was learnt: a simulated log over as many items as wanted, and SASRec trained on it.

There is no public log of a million items here, and vectors drawn at random have nothing that an approximate index could
find. So: items belong to series, 200 or so in each, and series to genres. A user likes a few genres, stays in a series
for a while, takes there what is popular or what follows the last item, and goes on to another series of the same genre.
Neither genre nor series is told to the network. One pass over a few clicks an item is too short to begin at random
(everybody got the same popular items), so rows begin as random projections of what was clicked around them (FastRP,
Chen et al. 2019, four steps over the items' neighbours in the log); then SASRec is trained as the trainer does it.

Shapes: U users, T clicks of each, I items, S series, D units, R rows of the item table.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from model.sasrec import SASRec
from model.settings import ModelSettings
from trainer.batch import Stretch
from trainer.learner import Learner
from trainer.passes import learn_in_passes
from trainer.settings import RetrainSettings, TrainerSettings

SETTINGS = ModelSettings(max_length=50, units=64, blocks=2)
ITEMS_PER_SERIES, SERIES_PER_GENRE = 200, 25
GENRES_PER_USER = 4
CLICKS_PER_USER, CLICKS_PER_ITEM = 40, 6
NEGATIVES = 512
STAY, FOLLOW = 0.85, 0.5
"""The chance to stay in a series, and in it to take what follows the last item."""
STEEPNESS = 2.5
"""Of popularity inside a series: the share of clicks of its first item grows with it."""
TEST_USERS = 512
ROW_LENGTH, OWN_SHARE, STEPS = 0.5, 0.1, 4


class Large(NamedTuple):
    """What was learnt, and users whom it was not learnt from."""

    network: SASRec
    """With a row for every item that was ever clicked."""
    row_BT: Tensor
    """Of the test users, oldest first."""
    cpu_seconds: float
    clicks: int


def log_of(items: int, users: int, rng: np.random.Generator) -> np.ndarray:
    """What users clicked, U x T: items from 0."""
    series = items // ITEMS_PER_SERIES
    genres = max(1, series // SERIES_PER_GENRE)
    genre_UG = rng.integers(genres, size=(users, GENRES_PER_USER))
    item_UT = np.empty((users, CLICKS_PER_USER), dtype=np.int64)
    user_U = np.arange(users)
    series_U = np.zeros(users, dtype=np.int64)
    place_U = np.zeros(users, dtype=np.int64)
    for click in range(CLICKS_PER_USER):
        moves_U = (rng.random(users) > STAY) | (click == 0)
        genre_U = genre_UG[user_U, rng.integers(GENRES_PER_USER, size=users)]
        to_U = (genre_U * SERIES_PER_GENRE + rng.integers(SERIES_PER_GENRE, size=users)) % series
        series_U = np.where(moves_U, to_U, series_U)
        follows_U = ~moves_U & (rng.random(users) < FOLLOW)
        popular_U = (ITEMS_PER_SERIES * rng.random(users) ** STEEPNESS).astype(np.int64)
        place_U = np.where(follows_U, (place_U + 1) % ITEMS_PER_SERIES, popular_U)
        item_UT[:, click] = series_U * ITEMS_PER_SERIES + place_U
    return item_UT


def neighbourhoods(item_UT: Tensor, items: int, generator: torch.Generator) -> Tensor:
    """Rows to begin with, I x D, of length `ROW_LENGTH`: items of the same neighbourhood are alike."""
    row_ID = torch.randn(items, SETTINGS.units, generator=generator)
    for _ in range(STEPS):
        around_ID = torch.zeros_like(row_ID)
        for item_U, next_U in zip(item_UT.T[:-1], item_UT.T[1:], strict=True):
            around_ID.index_add_(0, item_U, row_ID[next_U])
            around_ID.index_add_(0, next_U, row_ID[item_U])
        row_ID = normalize(normalize(around_ID) + OWN_SHARE * row_ID)
    return row_ID * ROW_LENGTH


def learn(items: int, *, seconds: float, stop: threading.Event) -> Large:
    """Simulates, trains in one pass or for so many CPU seconds, and keeps the last users apart."""
    rng = np.random.default_rng(1)
    users = items * CLICKS_PER_ITEM // CLICKS_PER_USER
    item_UT = log_of(items, users + TEST_USERS, rng)
    named = np.char.mod("%d", np.arange(items)).tolist()
    trainer = TrainerSettings(loss="sampled_softmax", negatives=NEGATIVES, max_items=items)
    learner = Learner(SETTINGS, trainer)
    learner.admit(named)
    with torch.no_grad():
        rows_I = torch.from_numpy(learner.catalogue.rows_of(named))
        beginning_ID = neighbourhoods(torch.from_numpy(item_UT[:users]), items, torch.Generator().manual_seed(1))
        learner.network.item_RD[rows_I] = beginning_ID
    weights = (1.0,) * CLICKS_PER_USER
    stretches = [Stretch(tuple(named[item] for item in item_T), weights) for item_T in item_UT[:users].tolist()]
    passes = RetrainSettings(epochs=1, batch_users=128, learning_rate=3e-3, max_seconds=seconds)
    began = time.process_time()
    for taught in learn_in_passes(learner, stretches, passes, clock=time.process_time, stop=stop):
        print(f"learnt: mean loss {taught.loss:.3f}, {taught.seconds:.0f} CPU-s", file=sys.stderr)
    row_BT = torch.from_numpy(learner.catalogue.rows_of(named)[item_UT[users:]])
    learnt = passes.batch_users * learner.optimiser.steps * CLICKS_PER_USER
    return Large(learner.network, row_BT, time.process_time() - began, min(learnt, item_UT[:users].size))


def kept(items: int, folder: Path, *, seconds: float, stop: threading.Event) -> Large:
    """The same, learnt only where `folder` does not have it."""
    file = folder / f"large-{items}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        large = learn(items, seconds=seconds, stop=stop)
        others = {"rows": large.row_BT, "cost": torch.tensor([large.cpu_seconds, float(large.clicks)])}
        save_file(large.network.tensors(rows=items + 1) | others, file)
    tensors = load_file(file)
    row_BT, (cpu_seconds, clicks) = tensors.pop("rows"), tensors.pop("cost").tolist()
    return Large(SASRec.from_tensors(SETTINGS, tensors, capacity=items + 1), row_BT, cpu_seconds, int(clicks))
