"""A learner becomes a checkpoint, and the checkpoint becomes known.

1. The checkpoint is written, whole or not at all, with the cut inside it.
2. It is announced on `models`, acknowledged.
3. The cut is shown to the tools that watch consumer groups.
4. Old checkpoints go; the announced one and the first of the lineage, which a gate may have promoted, stay.

Killed between 1 and 2, the restarted trainer announces what it resumes from.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from kafka import KafkaProducer

from model.checkpoint import Manifest, WrittenCheckpoint, prune, write_checkpoint
from stream.events import ModelAnnouncement
from stream.settings import KafkaSettings
from stream.topics import MODELS
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.state import documents_of, tensors_of

MODEL_NAME = "sasrec"
FIRST_VERSION = 1
ACKNOWLEDGE_SECONDS = 30.0

OnPublished = Callable[[ModelAnnouncement], None]


def new_lineage() -> str:
    """A name that no other lineage has; names sort by the time at which lineages began."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write(
    learner: Learner,
    cut: Cut,
    *,
    root: Path,
    lineage: str,
    version: int,
    boundaries: tuple[dict[int, int], ...] = (),
) -> WrittenCheckpoint:
    """Step 1: the learner as a whole checkpoint that stands for exactly the examples before the cut.

    Raises:
        FileExistsError: the version exists.
    """
    manifest = Manifest(
        lineage=lineage,
        version=version,
        created_at_ms=time.time_ns() // 1_000_000,
        model=learner.network.settings.model_dump(),
        examples_trained=learner.examples_trained,
        trained_through_ms=learner.trained_through_ms,
        trained_through_arrival_ms=learner.trained_through_arrival_ms,
    )
    return write_checkpoint(
        root, manifest, tensors=tensors_of(learner), documents=documents_of(learner, cut, boundaries)
    )


def announce(sender: KafkaProducer, kafka: KafkaSettings, written: WrittenCheckpoint) -> ModelAnnouncement:
    """Step 2: from its acknowledgement on, whoever starts serves or resumes from this checkpoint."""
    announcement = ModelAnnouncement(
        model=MODEL_NAME,
        lineage=written.manifest.lineage,
        version=written.manifest.version,
        path=str(written.path.absolute()),
        manifest_sha256=written.manifest_sha256,
        created_at_ms=written.manifest.created_at_ms,
        examples_trained=written.manifest.examples_trained,
        trained_through_ms=written.manifest.trained_through_ms,
        trained_through_arrival_ms=written.manifest.trained_through_arrival_ms,
    )
    sent = sender.send(kafka.topic(MODELS), key=MODEL_NAME.encode(), value=msgspec.json.encode(announcement))
    sent.get(timeout=ACKNOWLEDGE_SECONDS)
    return announcement


def prune_lineage(root: Path, announcement: ModelAnnouncement, *, keep: int) -> None:
    """Step 4."""
    prune(root / announcement.lineage, keep=keep, spare=(FIRST_VERSION, announcement.version))


def next_version(lineage: Path) -> int:
    """One above every version that was ever written there, broken ones included."""
    versions = [int(path.name) for path in lineage.glob("*") if path.name.isdigit()] if lineage.is_dir() else []
    return max(versions, default=FIRST_VERSION - 1) + 1
