"""A model to serve, small and untrained, written as the trainer writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.catalogue import Catalogue
from model.checkpoint import CATALOGUE, MODEL, Manifest, WrittenCheckpoint, write_checkpoint
from model.sasrec import SASRec
from model.settings import ModelSettings

WriteModel = Callable[..., WrittenCheckpoint]
TINY = ModelSettings(max_length=8, units=8, blocks=1)


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Writes a version of a lineage that knows these items; every version has other weights."""

    def write(*, version: int, items: Iterable[str], lineage: str = "first") -> WrittenCheckpoint:
        rng = np.random.default_rng(version)
        catalogue = Catalogue(max_items=1_000_000, half_life_clicks=10_000.0)
        rows = np.array([catalogue.admit(item_id) for item_id in items], dtype=np.int64)
        catalogue.count_clicks(rows)
        network = SASRec(TINY, capacity=catalogue.size, generator=torch.Generator().manual_seed(version))
        network.reset_rows(catalogue.take_fresh_rows(), rng)
        manifest = Manifest(
            lineage=lineage,
            version=version,
            created_at_ms=1_700_000_000_000,
            model=TINY.model_dump(),
            examples_trained=version,
            trained_through_ms=1_600_000_000_000 + version,
            trained_through_arrival_ms=1_700_000_000_000 + version,
        )
        return write_checkpoint(
            tmp_path / "checkpoints",
            manifest,
            tensors={MODEL: network.tensors(rows=catalogue.size)},
            documents={CATALOGUE: catalogue.to_document()},
        )

    return write
