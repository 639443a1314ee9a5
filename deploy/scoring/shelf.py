"""What a batch is ranked with, as one immutable reference: a slate comes from exactly one shelf (I5).

Shapes: R rows of the item table, D units.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.checkpoint import Manifest, ServingModel
from model.index import Index
from model.sasrec import Encoder, SASRec


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Shelf:
    """Items, how popular they are, and the network that ranks them where there is one already."""

    catalogue: Catalogue
    live_R: np.ndarray
    popularity_R: Tensor
    """Scores for users of whom nothing is known: log(1 + recent clicks)."""
    network: SASRec | None = None
    item_RD: Tensor | None = None
    manifest: Manifest | None = None
    changed_rows: np.ndarray | None = None
    """Rows with other weights or another item than in the shelf before; None where everything is new."""
    index: Index | None = None
    """Through which `item_RD` is searched; None where all of it is scored."""

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The network, prepared when first asked for: the weights of a shelf do not change."""
        assert self.network is not None, "ask only where there is a network"
        return self.network.encoder()

    @property
    def version(self) -> str | None:
        """As recommendations carry it; None before the first model."""
        return None if self.manifest is None else f"{self.manifest.lineage}/{self.manifest.version}"

    @property
    def trained_through_ms(self) -> int | None:
        """Event time of the newest click it has learnt from."""
        return None if self.manifest is None else self.manifest.trained_through_ms

    @property
    def trained_through_arrival_ms(self) -> int | None:
        """Kafka's timestamp of that click."""
        return None if self.manifest is None else self.manifest.trained_through_arrival_ms


def item_table(serving: ServingModel) -> Tensor:
    """Its rows in use, PADDING included."""
    return serving.model.item_RD.detach()[: serving.catalogue.size]


def shelf_of(serving: ServingModel, *, changed_rows: np.ndarray | None = None, index: Index | None = None) -> Shelf:
    """A model, ready to rank."""
    return Shelf(
        catalogue=serving.catalogue,
        live_R=serving.catalogue.live_mask(),
        popularity_R=_popularity(serving.catalogue),
        network=serving.model,
        item_RD=item_table(serving),
        manifest=serving.manifest,
        changed_rows=changed_rows,
        index=index,
    )


class ColdShelf:
    """Popularity counted by the worker itself, until the first model comes."""

    def __init__(self, *, max_items: int, half_life_clicks: float) -> None:
        self._catalogue = Catalogue(max_items=max_items, half_life_clicks=half_life_clicks)
        self._clicked: list[str] = []
        self._admitted: frozenset[str] = frozenset()

    def click(self, item_id: str) -> None:
        """Somebody chose it."""
        self._clicked.append(item_id)

    def shelf(self, available: frozenset[str]) -> Shelf:
        """Everything clicked or described so far; what was never clicked can still be explored."""
        if available is not self._admitted:
            for item_id in sorted(available - self._admitted):
                self._catalogue.admit(item_id)
            self._admitted = available
        rows = [self._catalogue.admit(item_id) for item_id in self._clicked]
        self._catalogue.count_clicks(np.array(rows, dtype=np.int64))
        self._clicked.clear()
        return Shelf(
            catalogue=self._catalogue, live_R=self._catalogue.live_mask(), popularity_R=_popularity(self._catalogue)
        )


def _popularity(catalogue: Catalogue) -> Tensor:
    return torch.from_numpy(np.log1p(catalogue.recent_click_counts()).astype(np.float32))
