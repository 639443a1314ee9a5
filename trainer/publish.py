"""A learner becomes a version of the model, and the version becomes known.

1. What changed since the version before is copied, and now and then all that a restart needs: the cut is inside both.
2. Beside learning: it is asked whether this is still the trainer of the folder (lock.py), and the delta is written,
   whole or not at all; then the full checkpoint, when one is due.
3. The version is announced on `models`, acknowledged, unless a newer trainer has come meanwhile.
4. Old versions go. Of a lineage the newest `trainer.keep_checkpoints` full ones stay, the first one, which a gate may
   have promoted, those that are pinned (model/checkpoint.py), and the deltas since the last but one. What cannot be
   removed is reported and counted, and stays.
5. The cut is shown to the tools that watch consumer groups.

Killed between 2 and 3, nobody ever reads what was written, and its number is not given again. A version that could not
be written or announced is reported and counted, learning goes on, and the next one says what both have changed.

A restarted trainer goes on from the newest full checkpoint. What deltas have published since then stays live until the
trainer has learnt as much again; its first version is a full one, from which a new chain begins.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import structlog
from kafka.errors import KafkaError

from model.checkpoint import (
    Manifest,
    WrittenCheckpoint,
    delta_versions,
    encoded,
    full_versions,
    prune,
    write_files,
)
from model.delta import Changes, Link, changes_of, delta_path, encode_delta, write_delta
from model.store import Place, absolute
from stream.cloud_events import Headers, event_headers
from stream.events import MODEL_NAME, ModelAnnouncement
from stream.settings import KafkaSettings
from stream.topics import MODELS
from trainer import metrics
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.live import keep
from trainer.lock import Term
from trainer.settings import TrainerSettings
from trainer.state import documents_of, tensors_of

FIRST_VERSION = 1
ACKNOWLEDGE_SECONDS = 30.0

OnPublished = Callable[[ModelAnnouncement], None]

_log = structlog.get_logger()


@runtime_checkable
class Sender(Protocol):
    """What a KafkaProducer does of which a publisher has need."""

    def send(self, topic: str, *, key: bytes, value: bytes | None, headers: Headers | None = None) -> Any:  # noqa: ANN401 - kafka-python ships no types
        """Sends a record; what comes back can be waited for."""


def new_lineage() -> str:
    """A name that no other lineage has; names sort by the time at which lineages began."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write(
    learner: Learner,
    cut: Cut,
    *,
    root: Place,
    lineage: str,
    version: int,
    generation: int = 0,
) -> WrittenCheckpoint:
    """The learner as a whole checkpoint that stands for exactly the examples before the cut.

    Raises:
        FileExistsError: the version exists.
    """
    manifest = _manifest(learner, lineage=lineage, version=version, generation=generation)
    return write_files(root, manifest, encoded(tensors_of(learner), documents_of(learner, cut, ())))


def announce(
    sender: Sender, kafka: KafkaSettings, written: WrittenCheckpoint, *, generation: int | None = None
) -> ModelAnnouncement:
    """From its acknowledgement on, whoever starts serves or resumes from this full checkpoint.

    A `generation` above that of the live model makes it live, of whatever lineage and version it is: it is promoted,
    and pinned, so that it can always be gone back to.
    """
    announcement = _announcement(written.manifest, path=written.path, sha256=written.manifest_sha256)
    if generation is not None:
        keep(written.path)
        announcement = msgspec.structs.replace(announcement, generation=generation, epoch=0)
    _send(sender, kafka, announcement)
    return announcement


def next_version(lineage: Place) -> int:
    """One above every version that was ever written there, broken ones included."""
    return max((*full_versions(lineage), *delta_versions(lineage)), default=FIRST_VERSION - 1) + 1


class Draft(NamedTuple):
    """A version that nobody has seen: what was learnt up to one moment, copied."""

    manifest: Manifest
    cut: Cut
    changes: Changes | None
    full: dict[str, bytes] | None
    boundaries: int
    """How many micro-batches the full checkpoint has recorded."""
    steps: int
    """Of the optimiser, at that moment."""
    catalogue_mark: int


class Published(NamedTuple):
    """A version that is known."""

    draft: Draft
    announcement: ModelAnnouncement
    parent: Link
    base: Link
    withdrawn: frozenset[str]
    """Keys on `models` under which nothing out of date stands any more."""


class _Chain(NamedTuple):
    """What the next delta goes on top of."""

    parent: Link
    base: Link
    steps: int
    catalogue_mark: int


class Workshop(NamedTuple):
    """What a publisher works with."""

    kafka: KafkaSettings
    sender: Sender
    settings: TrainerSettings
    root: Place
    term: Term


class Publisher:
    """Publishes the versions of one lineage after another, each beside what is learnt meanwhile.

    Of a slow store nothing is noticed but that versions come more rarely: only one is ever on its way.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.term = workshop.term
        self._shop = workshop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._under_way: Future[Published] | None = None
        self._stale: set[str] = set()
        self._lineage = ""
        self._generation = 0
        self._chain: _Chain | None = None
        self._version = 0
        self._hold_below = 0
        self._full_at = self._begun_at = time.monotonic()

    def begin(self, lineage: str, *, generation: int, live: ModelAnnouncement | None) -> None:
        """Goes on with a learner that was loaded or is new: the next version is full, and the first of a chain.

        What is `live` is not taken back before the learner has learnt as much, or `trainer.full_seconds` are over.
        """
        assert self._under_way is None, "what is on its way belongs to the lineage that was"
        if self._lineage:
            self._stale.add(f"{MODEL_NAME}/{self._lineage}/{self._shop.term.epoch}")
        if live is not None:
            self._stale.add(live.key)
        self._lineage, self._generation, self._chain = lineage, generation, None
        known = live.version if live is not None and live.lineage == lineage else 0
        self._version = max(next_version(self._shop.root / lineage) - 1, known, self._version if known else 0)
        self._hold_below = live.examples_trained if live is not None and known else 0
        self._full_at = self._begun_at = time.monotonic()

    def forget_when_newer(self, keys: Iterable[str]) -> None:
        """What stands on `models` under these keys is withdrawn once something newer does."""
        self._stale.update(keys)

    def announce(self, written: WrittenCheckpoint) -> None:
        """Makes known what stands in the folder already."""
        announcement = _announcement(written.manifest, path=written.path, sha256=written.manifest_sha256)
        epoch = self._shop.term.epoch
        _send(self._shop.sender, self._shop.kafka, msgspec.structs.replace(announcement, epoch=epoch))

    def is_due(self, *, examples_trained: int) -> bool:
        """Whether it is time for a version, if anything was learnt."""
        now = time.monotonic()
        if self._under_way is not None or now - self._begun_at < self._shop.settings.publish_seconds:
            return False
        return not self.is_held(examples_trained=examples_trained)

    def is_held(self, *, examples_trained: int) -> bool:
        """Whether what is live has learnt more, for it is not long that learning went back to an earlier cut."""
        just_begun = time.monotonic() - self._full_at < self._shop.settings.full_seconds
        return examples_trained < self._hold_below and just_begun

    def is_full_due(self) -> bool:
        """Whether the next version is a full checkpoint."""
        return self._chain is None or time.monotonic() - self._full_at >= self._shop.settings.full_seconds

    def publish(self, learner: Learner, cut: Cut, boundaries: list[dict[int, int]], *, final: bool = False) -> None:
        """Steps 1 to 4; `finished` tells when they are done. A `final` version is full."""
        self._begun_at = time.monotonic()
        draft = self._draft(learner, cut, boundaries, full=final or self.is_full_due())
        self._under_way = self._pool.submit(_publish, self._shop, draft, self._chain, frozenset(self._stale))

    def finished(self, *, wait: bool = False) -> Published | None:
        """What was published since the last question, if anything; a failure is reported and counted here.

        Raises:
            FencedError: another trainer has taken over.
        """
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        under_way, self._under_way = self._under_way, None
        try:
            published = under_way.result()
        except (OSError, KafkaError) as error:
            metrics.PUBLICATION_FAILURES.inc()
            _log.error("not published; learning goes on, and the next version tries again", reason=str(error))
            return None
        draft = published.draft
        self._chain = _Chain(published.parent, published.base, draft.steps, draft.catalogue_mark)
        self._stale -= published.withdrawn
        self._hold_below = 0
        if draft.full is not None:
            self._full_at = self._begun_at
        return published

    def close(self) -> None:
        """Waits for what is on its way."""
        self._pool.shutdown()

    def _draft(self, learner: Learner, cut: Cut, boundaries: list[dict[int, int]], *, full: bool) -> Draft:
        """Step 1."""
        self._version += 1
        manifest = _manifest(
            learner,
            lineage=self._lineage,
            version=self._version,
            generation=self._generation,
        )
        manifest = msgspec.structs.replace(
            manifest, epoch=self._shop.term.epoch, precision=self._shop.settings.publish_precision
        )
        contents = None
        if full:
            contents = encoded(tensors_of(learner), documents_of(learner, cut, tuple(boundaries)))
        return Draft(
            manifest,
            cut,
            self._changes(learner, cut),
            contents,
            len(boundaries) if full else 0,
            learner.optimiser.steps,
            learner.catalogue.mark(),
        )

    def _changes(self, learner: Learner, cut: Cut) -> Changes | None:
        if self._chain is None:
            return None
        rows = learner.catalogue.size
        return changes_of(
            learner.network,
            learner.optimiser.rows_changed_since(self._chain.steps, rows=rows),
            rows=rows,
            catalogue=learner.catalogue.changes_since(self._chain.catalogue_mark),
            cut=msgspec.msgpack.encode(cut),
        )


def _encoded_delta(draft: Draft, chain: _Chain | None) -> bytes | None:
    """On top of the chain; beside what is learnt meanwhile, for it takes as long as a micro-batch."""
    if draft.changes is None or chain is None:
        return None
    return encode_delta(draft.manifest, draft.changes, parent=chain.parent, base=chain.base)


def _publish(shop: Workshop, draft: Draft, chain: _Chain | None, stale: frozenset[str]) -> Published:
    manifest = draft.manifest
    with metrics.PUBLISH_SECONDS.time():
        # 2.
        shop.term.check()
        encoded_delta = _encoded_delta(draft, chain)
        delta = encoded_delta and write_delta(
            shop.root, encoded_delta, lineage=manifest.lineage, version=manifest.version
        )
        written = None if draft.full is None else write_files(shop.root, manifest, draft.full)
        # 3.
        shop.term.check()
        if written is not None:
            announcement = _announcement(manifest, path=written.path, sha256=written.manifest_sha256)
            if delta:
                announcement = msgspec.structs.replace(announcement, delta_sha256=delta.sha256)
        else:
            assert delta, "a version that is not full goes on top of another"
            path = delta_path(shop.root, manifest.lineage, manifest.version)
            announcement = msgspec.structs.replace(
                _announcement(manifest, path=path, sha256=delta.sha256), kind="delta"
            )
        announcement = msgspec.structs.replace(
            announcement, offsets={str(partition): offset for partition, offset in draft.cut.offsets.items()}
        )
        _send(shop.sender, shop.kafka, announcement)
    # 4.
    withdrawn = _withdraw(shop, stale, but=announcement.key)
    if written is not None:
        _prune(shop, manifest)
    own = Link(manifest.version, written.manifest_sha256) if written is not None else None
    base = own or (chain and chain.base)
    parent = delta or own
    assert base is not None
    assert parent
    metrics.observe_version(full=written is not None, delta_bytes=len(encoded_delta or b""))
    return Published(draft, announcement, parent, base, withdrawn)


def _withdraw(shop: Workshop, stale: frozenset[str], *, but: str) -> frozenset[str]:
    """What older terms and lineages announced is out of date once something newer stands there; gives back its keys."""
    try:
        for key in sorted(stale - {but}):
            shop.sender.send(shop.kafka.topic(MODELS), key=key.encode(), value=None)
    except KafkaError as error:
        _log.error("older announcements could not be withdrawn; the next version tries again", reason=str(error))
        return frozenset()
    return stale


def _prune(shop: Workshop, manifest: Manifest) -> None:
    """The version is known by now: where the store deletes nothing, learning and publishing go on."""
    lineage = shop.root / manifest.lineage
    try:
        prune(lineage, keep=shop.settings.keep_checkpoints, spare=(FIRST_VERSION, manifest.version))
    except OSError as error:
        metrics.PRUNING_FAILURES.inc()
        _log.error(
            "old checkpoints could not be removed; let the trainer delete in its folder, or remove them yourself",
            folder=str(lineage),
            reason=str(error),
        )


def _manifest(learner: Learner, *, lineage: str, version: int, generation: int) -> Manifest:
    return Manifest(
        lineage=lineage,
        version=version,
        created_at_ms=time.time_ns() // 1_000_000,
        model=learner.network.settings.model_dump(),
        examples_trained=learner.examples_trained,
        trained_through_ms=learner.trained_through_ms,
        trained_through_arrival_ms=learner.trained_through_arrival_ms,
        generation=generation,
    )


def _announcement(manifest: Manifest, *, path: Place, sha256: str) -> ModelAnnouncement:
    return ModelAnnouncement(
        model=MODEL_NAME,
        lineage=manifest.lineage,
        version=manifest.version,
        path=absolute(path),
        manifest_sha256=sha256,
        created_at_ms=manifest.created_at_ms,
        examples_trained=manifest.examples_trained,
        trained_through_ms=manifest.trained_through_ms,
        trained_through_arrival_ms=manifest.trained_through_arrival_ms,
        generation=manifest.generation,
        epoch=manifest.epoch,
    )


def _send(sender: Sender, kafka: KafkaSettings, announcement: ModelAnnouncement) -> None:
    headers = event_headers(announcement, event_id=announcement.name, source=MODELS, at_ms=announcement.created_at_ms)
    value = msgspec.json.encode(announcement)
    sent = sender.send(kafka.topic(MODELS), key=announcement.key.encode(), value=value, headers=headers)
    sent.get(timeout=ACKNOWLEDGE_SECONDS)
