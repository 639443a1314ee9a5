"""Follows `models`: verifies what is announced, loads it beside the model that serves, and swaps one reference."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch

from deploy.scoring import metrics
from deploy.scoring.follow import follow
from deploy.scoring.shelf import Shelf, shelf_of
from model.catalogue import PADDING
from model.checkpoint import BrokenCheckpointError, newest_checkpoint, read_serving
from stream.events import ModelAnnouncement
from stream.settings import KafkaSettings
from stream.topics import MODELS
from trainer.publish import MODEL_NAME


class Models:
    """The model that serves.

    A checkpoint that cannot be served from is reported and counted, and nothing else changes (I4).
    """

    def __init__(self, kafka: KafkaSettings, *, checkpoint: Path | None, warm_up_users: int) -> None:
        self._kafka = kafka
        self._checkpoint = checkpoint
        self._warm_up_users = warm_up_users
        self.ready = threading.Event()
        """Set when what stood on `models` at the start serves, or turned out to be nothing."""
        self.live: Shelf | None = None
        """Replaced as a whole, never changed: take it once per batch."""

    def run(self, stop: threading.Event) -> None:
        """Follows the topic until `stop`, or serves one given checkpoint for ever; for a thread of its own.

        Raises:
            BrokenCheckpointError: the given checkpoint cannot be served from.
        """
        if self._checkpoint is not None:
            self._serve(self._checkpoint)
            self.ready.set()
            return
        for changes in follow(self._kafka, MODELS, stop):
            if MODEL_NAME.encode() in changes:
                self._take_over(changes[MODEL_NAME.encode()])
            self.ready.set()

    def _take_over(self, record: Any) -> None:  # noqa: ANN401 - kafka-python ships no types
        """What cannot be served is skipped; with nothing to serve yet, an older version of that lineage will do."""
        try:
            announcement = _decoder().decode(record.value)
        except msgspec.DecodeError as error:
            _report(error, offset=record.offset)
            return
        path = Path(announcement.path)
        try:
            self._serve(path, sha256=announcement.manifest_sha256)
        except BrokenCheckpointError as error:
            _report(error, version=announcement.name)
            older = newest_checkpoint(path.parent, on_broken=_report) if self.live is None else None
            if older is not None:
                self._serve(older.path, sha256=older.manifest_sha256)

    def _serve(self, path: Path, *, sha256: str | None = None) -> None:
        """Read and verified, warmed up, and only then one assignment."""
        began = time.monotonic()
        shelf = shelf_of(read_serving(path, sha256=sha256))
        _warm_up(shelf, users=self._warm_up_users)
        self.live = shelf
        _tell(shelf, seconds=time.monotonic() - began)


def _warm_up(shelf: Shelf, *, users: int) -> None:
    """The first forward pass of a network costs more than the next; no user shall wait for it."""
    assert shelf.network is not None
    rows_BT = torch.full((users, shelf.network.settings.max_length), PADDING, dtype=torch.int64)
    shelf.network.encode_last(rows_BT)


def _tell(shelf: Shelf, *, seconds: float) -> None:
    manifest = shelf.manifest
    assert manifest is not None
    metrics.SWAPS.inc()
    metrics.LIVE_MODEL.clear()
    metrics.LIVE_MODEL.labels(lineage=manifest.lineage, version=str(manifest.version)).set(1)
    metrics.TRAINED_THROUGH.set((manifest.trained_through_arrival_ms or 0) / 1_000)
    structlog.get_logger().info(
        "model swapped", version=shelf.version, items=len(shelf.catalogue), seconds=round(seconds, 3)
    )


def _report(error: Exception, **where: object) -> None:
    metrics.BROKEN_CHECKPOINTS.inc()
    structlog.get_logger().error("checkpoint skipped, the old model serves on", reason=str(error), **where)


@functools.cache
def _decoder() -> msgspec.json.Decoder[ModelAnnouncement]:
    return msgspec.json.Decoder(ModelAnnouncement)
