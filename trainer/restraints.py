"""Which restraints the settings mean."""

from __future__ import annotations

from model.settings import ModelSettings
from trainer.anchor import Anchor
from trainer.remembering import Restraint
from trainer.settings import TrainerSettings
from trainer.teacher import Teacher


def restraints_of(trainer: TrainerSettings, model: ModelSettings) -> list[Restraint]:
    """None where nothing is to be held on to."""
    found: list[Restraint] = []
    if trainer.distillation > 0.0:
        found.append(Teacher(model, weight=trainer.distillation))
    if trainer.consolidation > 0.0:
        found.append(Anchor(weight=trainer.consolidation))
    return found
