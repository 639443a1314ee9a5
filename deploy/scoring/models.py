"""Follows `models`: verifies what is announced, prepares it beside the model that serves, and swaps one reference.

1. Of several announcements the one that counts is taken (`ModelAnnouncement.supersedes`): a trainer or a lineage whose
   time is over is passed over, whenever its announcement is read.
2. Its files are read, every hash verified: of a delta, the chain back to what is served here, or to a full checkpoint.
3. A full checkpoint is loaded beside the model that serves; deltas are applied to the copy that nobody reads.
4. The index of a large catalogue follows, and the model is warmed up.
5. One reference is replaced. A batch that began before keeps the old model to its end.

What cannot be served from is reported and counted, and nothing else changes (I4). After a missing or harmed delta the
next full checkpoint is waited for, unless the hole closes before.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import structlog
import torch

from deploy.scoring import metrics
from deploy.scoring.buffers import Buffers
from deploy.scoring.follow import follow
from deploy.scoring.indexing import EXACT, Changed, Indexing
from deploy.scoring.shelf import Shelf, item_table, shelf_of
from model.catalogue import PADDING
from model.chain import NOTHING, BrokenChainError, Route, Standing, delta_at, is_proven, read_base, route_to
from model.checkpoint import BrokenCheckpointError, ServingModel, newest_checkpoint, read_manifest, read_serving
from model.delta import Delta, Link, apply_delta, read_delta
from model.store import Place, place_of
from stream.events import MODEL_NAME, ModelAnnouncement
from stream.settings import KafkaSettings
from stream.topics import MODELS
from trainer.live import check_is, keep

READ_POLL_SECONDS = 0.001


class Models:
    """The model that serves."""

    def __init__(
        self, kafka: KafkaSettings, *, checkpoint: str | None, warm_up_users: int, indexing: Indexing = EXACT
    ) -> None:
        self._kafka = kafka
        self._indexing = indexing
        self._checkpoint = checkpoint
        self._warm_up_users = warm_up_users
        self.ready = threading.Event()
        """Set when what stood on `models` at the start serves, or turned out to be nothing."""
        self.live: Shelf | None = None
        """Replaced as a whole, never changed while `borrowed`."""
        self._lock = threading.Lock()
        self._readers: Counter[Shelf] = Counter()
        self._former: Shelf | None = None
        self._buffers: Buffers | None = None
        self._standing = NOTHING
        self._announced: ModelAnnouncement | None = None
        self._hole: Link | None = None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Shelf | None]:
        """What serves now, unchanged for as long as it is held; hold it for one batch."""
        with self._lock:
            shelf = self.live
            if shelf is not None:
                self._readers[shelf] += 1
        try:
            yield shelf
        finally:
            with self._lock:
                if shelf is not None:
                    self._readers[shelf] -= 1
                    if not self._readers[shelf]:
                        del self._readers[shelf]

    def run(self, stop: threading.Event) -> None:
        """Follows the topic until `stop`, or serves one given checkpoint for ever; for a thread of its own.

        Raises:
            BrokenCheckpointError: the given checkpoint cannot be served from.
        """
        if self._checkpoint is not None:
            self._load(place_of(self._checkpoint), began=time.monotonic())
            keep(place_of(self._checkpoint))
            self.ready.set()
            return
        for changes in follow(self._kafka, MODELS, stop):
            self.hear(changes.values())
            self.ready.set()

    def hear(self, records: Iterable[Any]) -> None:
        """Serves the newest of some records of `models`, if it is newer than what was heard before (step 1)."""
        newest = self._announced
        for record in sorted(records, key=lambda record: (record.partition, record.offset)):
            announcement = _announcement(record)
            if announcement is not None and announcement.supersedes(newest):
                newest = announcement
            elif announcement is not None:
                metrics.SUPERSEDED.inc()
        if newest is None or newest is self._announced:
            return
        self._announced = newest
        try:
            self._take_over(newest, place_of(newest.path))
        except (BrokenCheckpointError, ValueError) as error:
            _report(error, version=newest.name)
            if self.live is None:
                self._make_do(newest, error)

    def _take_over(self, newest: ModelAnnouncement, path: Place) -> None:
        began = time.monotonic()
        if newest.kind == "delta":
            self._follow(Link(newest.version, newest.manifest_sha256), path.parent, began=began)
        elif newest.delta_sha256 is None or not self._continue_to(newest, path, began=began):
            self._load(path, announcement=newest, began=began)

    def _follow(self, newest: Link, lineage: Place, *, began: float) -> None:
        """Deltas on top of what is served, or all of a chain from its beginning."""
        if self._hole is not None:
            read_delta(lineage / f"{self._hole.version:08d}.delta", sha256=self._hole.sha256)
        try:
            route = route_to(newest, lineage, standing=self._standing)
            if route.base is None:
                self._advance(route, lineage, began=began)
            else:
                self._rebuild(route, route.base, lineage, began=began)
            self._hole = None
        except BrokenChainError as error:
            self._hole = error.hole
            raise

    def _continue_to(self, newest: ModelAnnouncement, path: Place, *, began: float) -> bool:
        """By the delta that leads to a full checkpoint's version, where that goes on top of what is served.

        Then the weights here are held against the full checkpoint's own hash.
        """
        assert newest.delta_sha256 is not None
        delta = Link(newest.version, newest.delta_sha256)
        if self._standing is NOTHING or self._hole is not None:
            return False
        try:
            route = route_to(delta, path.parent, standing=self._standing)
            if route.base is not None:
                return False
            manifest = read_manifest(path, sha256=newest.manifest_sha256)
            self._advance(route, path.parent, began=began)
            assert self._buffers is not None
            proven = is_proven(self._buffers.front, path, manifest)
        except BrokenCheckpointError as error:
            _report(error, version=newest.name)
            return False
        if not proven:
            _report(
                BrokenCheckpointError("deltas led to other weights than the full checkpoint's"), version=newest.name
            )
            return False
        self._standing = Standing(delta, Link(newest.version, newest.manifest_sha256))
        return True

    def _advance(self, route: Route, lineage: Place, *, began: float) -> None:
        deltas = [delta_at(route, link, lineage) for link in route.links]
        assert self._buffers is not None
        try:
            front = self._buffers.advance(deltas, wait_until_unread=self._wait_until_unread)
        except BrokenCheckpointError:
            self._standing = NOTHING  # which of them fits is not known any more: only a full one will do
            raise
        metrics.DELTAS_APPLIED.inc(len(deltas))
        self._standing = Standing(route.links[-1], None)
        self._serve(front, users=1, changed=_changed_by(deltas), began=began)

    def _rebuild(self, route: Route, base: Link, lineage: Place, *, began: float) -> None:
        serving = read_base(base, lineage)
        for link in route.links:
            serving = apply_delta(serving, delta_at(route, link, lineage))
        self._put(serving, Standing(route.links[-1], None), began=began)

    def _load(self, path: Place, *, began: float, announcement: ModelAnnouncement | None = None) -> None:
        sha256 = announcement.manifest_sha256 if announcement is not None else None
        serving = read_serving(path, sha256=sha256)
        if announcement is not None:
            check_is(serving.manifest, announcement)
        full = None if sha256 is None else Link(serving.manifest.version, sha256)
        self._put(serving, Standing(None, full), began=began)

    def _put(self, serving: ServingModel, standing: Standing, *, began: float) -> None:
        """A model that was read as a whole, with buffers of its own."""
        self._buffers = Buffers(serving)
        self._standing, self._hole = standing, None
        self._serve(serving, users=self._warm_up_users, changed=None, began=began)

    def _make_do(self, announcement: ModelAnnouncement, error: Exception) -> None:
        """With nothing to serve, the full checkpoint before a broken chain will do, or an older one of the lineage."""
        lineage, began = place_of(announcement.path).parent, time.monotonic()
        hole = self._hole
        try:
            if isinstance(error, BrokenChainError) and error.base is not None:
                self._put(read_base(error.base, lineage), Standing(None, error.base), began=began)
                self._hole = hole
                return
        except BrokenCheckpointError as broken:
            _report(broken)
        older = newest_checkpoint(lineage, on_broken=_report)
        if older is not None:
            full = Link(older.manifest.version, older.manifest_sha256)
            self._put(read_serving(older.path, sha256=full.sha256), Standing(None, full), began=began)

    def _serve(self, serving: ServingModel, *, users: int, changed: Changed | None, began: float) -> None:
        """Steps 4 and 5."""
        before = None if self.live is None else self.live.index
        index = self._indexing.index_for(item_table(serving), before=before, changed=changed)
        shelf = shelf_of(serving, changed_rows=None if changed is None else changed.rows_X, index=index)
        _warm_up(shelf, users=users)
        with self._lock:
            self._former, self.live = self.live, shelf
        _tell(shelf, seconds=time.monotonic() - began)

    def _wait_until_unread(self) -> None:
        """The copy behind is what the former shelf was made of."""
        while self._former is not None and self._is_read(self._former):
            time.sleep(READ_POLL_SECONDS)

    def _is_read(self, shelf: Shelf) -> bool:
        with self._lock:
            return shelf in self._readers


def _announcement(record: Any) -> ModelAnnouncement | None:  # noqa: ANN401 - kafka-python ships no types
    """None where it was withdrawn, is of another model, or cannot be read, which is reported."""
    if record.value is None:
        return None
    try:
        announcement = msgspec.json.decode(record.value, type=ModelAnnouncement)
    except msgspec.DecodeError as error:
        _report(error, offset=record.offset)
        return None
    return announcement if announcement.model == MODEL_NAME else None


def _changed_by(deltas: Sequence[Delta]) -> Changed:
    """Rows that mean something else than before: other weights, or another item."""
    placed = [np.frombuffer(delta.changes.rows, dtype="<i8") for delta in deltas]
    weighed = [delta.rows_U.numpy() for delta in deltas]
    return Changed(np.unique(np.concatenate([*weighed, *placed])), np.unique(np.concatenate(placed)))


def _warm_up(shelf: Shelf, *, users: int) -> None:
    """The first forward pass of a network costs more than the next; no user shall wait for it."""
    assert shelf.network is not None
    rows_BT = torch.full((users, shelf.network.settings.max_length), PADDING, dtype=torch.int64)
    shelf.encoder.encode_last(rows_BT)


def _tell(shelf: Shelf, *, seconds: float) -> None:
    manifest = shelf.manifest
    assert manifest is not None
    metrics.SWAPS.inc()
    metrics.SWAP_SECONDS.observe(seconds)
    metrics.LIVE_MODEL.clear()
    metrics.LIVE_MODEL.labels(lineage=manifest.lineage, version=str(manifest.version)).set(1)
    metrics.TRAINED_THROUGH.set((manifest.trained_through_arrival_ms or 0) / 1_000)
    log = structlog.get_logger()
    tell = log.info if shelf.changed_rows is None else log.debug
    tell("model swapped", version=shelf.version, items=len(shelf.catalogue), seconds=round(seconds, 3))


def _report(error: Exception, **where: object) -> None:
    metrics.BROKEN_CHECKPOINTS.inc()
    structlog.get_logger().error("checkpoint skipped, the old model serves on", reason=str(error), **where)
