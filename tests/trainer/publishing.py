"""A trainer without Kafka: it learns, publishes into a folder, and what it announces is in a list."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec
import torch

from model import store
from model.checkpoint import rounded
from stream.events import ModelAnnouncement
from stream.examples import Example
from stream.settings import KafkaSettings
from tests.trainer.doomed_trainer import MODEL
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.live import read_live
from trainer.lock import Term, only_trainer
from trainer.publish import Publisher, Workshop, new_lineage
from trainer.settings import TrainerSettings

KAFKA = KafkaSettings()
SETTINGS = TrainerSettings(negatives=16, publish_seconds=1e-6, full_seconds=1_000.0, keep_checkpoints=2)


class Topic:
    """Stands for `models`: takes what is sent, and acknowledges it."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes | None] = {}
        self.announcements: list[ModelAnnouncement] = []

    def send(self, topic: str, *, key: bytes, value: bytes | None, headers: object = None) -> Topic:
        self.records[key] = value
        if value is not None:
            self.announcements.append(msgspec.json.decode(value, type=ModelAnnouncement))
        return self

    def get(self, timeout: float) -> None:
        """Acknowledged."""


class Trainer:
    """A learner that publishes into a folder."""

    def __init__(self, root: store.Place, topic: Topic, settings: TrainerSettings, term: Term) -> None:
        self.learner = Learner(MODEL, settings)
        self.topic = topic
        self.publisher = Publisher(Workshop(KAFKA, topic, settings, root, term))
        self.boundaries: list[dict[int, int]] = []
        self.lineage = new_lineage()
        self.publisher.begin(self.lineage, generation=1, live=None)

    def learn(self, batch: Sequence[Example]) -> None:
        self.learner.learn(batch)
        self.boundaries.append({0: self.learner.examples_trained})

    def publish(self, *, final: bool = False) -> ModelAnnouncement | None:
        cut = Cut(offsets={0: self.learner.examples_trained})
        self.publisher.publish(self.learner, cut, self.boundaries, final=final)
        published = self.publisher.finished(wait=True)
        return published and published.announcement


@contextlib.contextmanager
def trainer_in(root: store.Place, settings: TrainerSettings = SETTINGS) -> Iterator[Trainer]:
    torch.set_num_threads(1)
    with only_trainer(root) as term:
        trainer = Trainer(root, Topic(), settings, term)
        with contextlib.closing(trainer.publisher):
            yield trainer


def assert_live_is(announcement: ModelAnnouncement | None, learner: Learner) -> None:
    assert announcement is not None
    live = read_live(announcement)
    rows = learner.catalogue.size
    assert live.serving.catalogue.same_as(learner.catalogue)
    rebuilt = live.serving.model.tensors(rows=rows)
    for name, tensor in rounded(learner.network.tensors(rows=rows), live.serving.manifest.precision).items():
        assert tensor.numpy().tobytes() == rebuilt[name].numpy().tobytes(), name
    assert live.cut.offsets == {0: learner.examples_trained}
    assert live.serving.manifest.trained_through_ms == learner.trained_through_ms
