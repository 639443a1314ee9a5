"""A learner and its cut as the files of a checkpoint, and back: everything that the next step depends on (I1, I9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.checkpoint import (
    CATALOGUE,
    MODEL,
    TRAINER,
    TRAINER_TENSORS,
    BrokenCheckpointError,
    read_document,
    read_manifest,
    read_tensors,
)
from model.sasrec import SASRec
from model.store import Place
from trainer.crew import ALONE, Crew
from trainer.cut import Cut
from trainer.exposure import Exposure
from trainer.flood import Flood
from trainer.guard import Guard
from trainer.learner import Learner
from trainer.probation import Probation
from trainer.replay import Replay
from trainer.settings import TrainerSettings
from trainer.slots import Slots
from trainer.waiting import Waiting
from trainer.weights import Evidence, Weigher

OPTIMISER = "optimiser."
WINDOW = "weights."
PREQUENTIAL = "prequential."


class TrainerDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds of the trainer besides tensors."""

    cut: Cut
    boundaries: tuple[dict[int, int], ...]
    """Micro-batches since the checkpoint before: where each ended, per partition of `examples`."""
    random_state: bytes
    replay: Replay
    exposure: Exposure
    slots: Slots = msgspec.field(default_factory=Slots)
    guard: Guard = msgspec.field(default_factory=Guard)
    flood: Flood = msgspec.field(default_factory=Flood)
    waiting: Waiting = msgspec.field(default_factory=Waiting)
    probation: Probation | None = None


class Resumed(NamedTuple):
    """A learner as it was when its checkpoint was written, and where it goes on."""

    learner: Learner
    cut: Cut


def tensors_of(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """The tensor files of a checkpoint."""
    rows = learner.catalogue.size
    window = {WINDOW + name: torch.from_numpy(array) for name, array in learner.weigher.window._asdict().items()}
    arrays = {PREQUENTIAL + name: torch.from_numpy(array) for name, array in learner.prequential.arrays().items()}
    optimiser = {OPTIMISER + name: tensor for name, tensor in learner.optimiser.tensors(rows=rows).items()}
    restraints = {one.name + name: tensor for one in learner.restraints for name, tensor in one.tensors().items()}
    return {MODEL: learner.network.tensors(rows=rows), TRAINER_TENSORS: optimiser | window | arrays | restraints}


def documents_of(learner: Learner, cut: Cut, boundaries: tuple[dict[int, int], ...]) -> dict[str, bytes]:
    """The other files of a checkpoint."""
    document = TrainerDocument(
        cut=cut,
        boundaries=boundaries,
        random_state=learner.random_state(),
        replay=learner.replay,
        exposure=learner.exposure,
        slots=learner.slots,
        guard=learner.guard,
        flood=learner.flood,
        waiting=learner.waiting,
        probation=learner.probation,
    )
    return {CATALOGUE: learner.catalogue.to_document(), TRAINER: msgspec.msgpack.encode(document)}


def resume(path: Place, settings: TrainerSettings, *, device: str = "cpu", crew: Crew = ALONE) -> Resumed:
    """The learner that wrote the checkpoint, with its network's own shape and the trainer's present settings.

    Raises:
        BrokenCheckpointError: a part is absent, altered or cannot be read.
    """
    manifest = read_manifest(path)
    document = _document(path)
    catalogue = Catalogue.from_document(read_document(path, manifest, CATALOGUE))
    learner = Learner(manifest.settings, settings, device=device, crew=crew)
    network = SASRec.from_tensors(manifest.settings, read_tensors(path, manifest, MODEL), capacity=catalogue.capacity)
    learner.take_over(catalogue, network.to(torch.device(device)))
    _restore_tensors(learner, read_tensors(path, manifest, TRAINER_TENSORS))
    _restore_document(learner, document)
    learner.examples_trained = manifest.examples_trained
    learner.trained_through_ms = manifest.trained_through_ms
    learner.trained_through_arrival_ms = manifest.trained_through_arrival_ms
    return Resumed(learner, document.cut)


def read_cut(path: Place) -> Cut:
    """Which examples a checkpoint's model has learnt.

    Raises:
        BrokenCheckpointError: absent, altered or unreadable.
    """
    return _document(path).cut


def read_boundaries(path: Place) -> tuple[dict[int, int], ...]:
    """Where each micro-batch since the checkpoint before ended, per partition of `examples`.

    Raises:
        BrokenCheckpointError: absent, altered or unreadable.
    """
    return _document(path).boundaries


def read_guard(path: Place) -> Guard:
    """How many micro-batches the learner has behind it, and which of them were learnt warily.

    Raises:
        BrokenCheckpointError: absent, altered or unreadable.
    """
    return _document(path).guard


def _document(path: Place) -> TrainerDocument:
    raw = read_document(path, read_manifest(path), TRAINER)
    try:
        return msgspec.msgpack.decode(raw, type=TrainerDocument)
    except msgspec.DecodeError as error:
        raise BrokenCheckpointError(f"{path / TRAINER} cannot be read ({error}); use another checkpoint") from error


def _restore_tensors(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    learner.optimiser.load_tensors(_within(tensors, OPTIMISER))
    window = {name: tensor.numpy() for name, tensor in _within(tensors, WINDOW).items()}
    learner.weigher = Weigher(learner.settings, window=Evidence(**window))
    learner.prequential.restore({name: tensor.numpy() for name, tensor in _within(tensors, PREQUENTIAL).items()})
    for restraint in learner.restraints:
        restraint.load_tensors(_within(tensors, restraint.name), device=learner.network.device)


def _restore_document(learner: Learner, document: TrainerDocument) -> None:
    learner.restore_random_state(document.random_state)
    learner.replay = document.replay.bounded(
        max_users=learner.replay.max_users, max_items=learner.replay.max_items, choice=learner.replay.choice
    )
    learner.guard, learner.flood, learner.waiting = document.guard, document.flood, document.waiting
    learner.probation = document.probation
    learner.exposure = msgspec.structs.replace(document.exposure, window=learner.exposure.window)
    learner.slots = msgspec.structs.replace(document.slots, window=learner.slots.window)


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
