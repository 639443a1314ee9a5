"""What a trainer works with, and the learners that are made there."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch

from model.settings import ModelSettings
from model.store import Place
from stream.settings import KafkaSettings
from trainer.crew import TABLE, Crew
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.settings import TrainerSettings
from trainer.state import Resumed, resume


class Workplace(NamedTuple):
    """The settings, the folder, and who else learns the same model."""

    kafka: KafkaSettings
    model: ModelSettings
    trainer: TrainerSettings
    checkpoints: Place
    crew: Crew

    def beginning(self) -> Resumed:
        """A learner that knows nothing, before the first example."""
        learner = Learner(self.model, self.trainer, device=device_of(self.trainer), crew=self.crew)
        return Resumed(learner, Cut())

    def resumed(self, checkpoint: Place) -> Resumed:
        """The learner of a full checkpoint, and its cut."""
        return resume(checkpoint, self.trainer, device=device_of(self.trainer), crew=self.crew)


def device_of(settings: TrainerSettings) -> str:
    """Where the network learns."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def digest_of(learner: Learner) -> bytes:
    """Differs where learners do: the dense weights, the sum of the item table, and what the next dice will be."""
    digest = hashlib.blake2b(learner.random_state(), digest_size=16)
    for name, weight in learner.network.named_parameters():
        tensor = weight.detach().sum(dtype=torch.float64) if name == TABLE else weight.detach()
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.digest()
