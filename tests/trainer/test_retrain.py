"""The full retrain on the real broker: learnt from `sequences`, caught up, and judged beside the live model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from model.settings import ModelSettings, PolicySettings
from stream.clients import producer
from stream.examples import ClickExample, Example, ExampleId, Served, ShownItem, SlateExample
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import SEQUENCES
from tests.trainer.clicks import clicks, send
from tests.trainer.doomed_trainer import MODEL, TRAINER
from trainer.cut import Cut
from trainer.examples import newest_announcement
from trainer.learner import Learner
from trainer.publish import announce, new_lineage, write
from trainer.retrain import Retrained, RetrainingSettings, run_retrain
from trainer.settings import GateSettings, RetrainSettings

pytestmark = pytest.mark.broker

KNOWN, TOLD = 1_000, 1_400
"""Clicks in the states of all users; and all clicks that there are before the gate asks."""


def write_states(kafka: KafkaSettings, examples: Sequence[ClickExample]) -> None:
    """`sequences` as the stream worker leaves it after these clicks."""
    newest = {example.user_id: example for example in examples}
    with producer(kafka) as sender:
        for user_id, last in newest.items():
            items = (*last.context, last.item_id)
            times = times_of([last.timestamp_ms - len(items) + place for place in range(1, len(items) + 1)])
            through = max(one.id.offset for one in examples if one.id.partition == last.id.partition)
            state = UserState(items=items, times=times, clicks_applied=len(items), applied=Applied(clicks=through))
            sender.send(
                kafka.topic(SEQUENCES), key=user_id.encode(), value=encode_state(state), partition=last.id.partition
            )
        sender.flush()


def served(examples: Sequence[ClickExample]) -> list[Example]:
    """The same clicks, each out of a slate that showed something else besides, and the slates."""
    told: list[Example] = []
    for click in examples:
        how = Served("softmax", "r", 0, 0.5, "exact", "exploit")
        shown = tuple(
            ShownItem(item, place, 0.5, "exact", "exploit", None, clicked=place == 0)
            for place, item in enumerate((click.item_id, "item-29"))
        )
        where = ExampleId("impressions", click.id.partition, click.id.offset, 0)
        slate = SlateExample(where, click.user_id, click.context, "r", "softmax", shown, click.timestamp_ms, 1)
        told += [msgspec.structs.replace(click, served=how), slate]
    return told


def retrained(kafka: KafkaSettings, root: Path, *, epochs: int) -> tuple[Retrained, list[str]]:
    """Beside a live model that has learnt 40 clicks; the clicks of the gate come once the challenger has caught up."""
    torch.set_num_threads(1)
    examples = clicks(2_000, partitions=2)
    send(kafka, examples[:TOLD])
    write_states(kafka, examples[:KNOWN])
    champion = Learner(MODEL, TRAINER)
    champion.learn(examples[:40])
    told: list[str] = []
    with producer(kafka) as sender:
        announce(sender, kafka, write(champion, Cut(), root=root, lineage=new_lineage(), version=1), generation=1)

    def hear(text: str) -> None:
        told.append(text)
        if text.startswith("caught up"):
            send(kafka, served(examples[TOLD:]))

    sections = RetrainingSettings(
        kafka,
        StreamSettings(),
        ModelSettings(max_length=8, units=32, blocks=1),
        TRAINER.model_copy(update={"learning_rate": 0.01}),
        RetrainSettings(epochs=epochs, learning_rate=0.02),
        GateSettings(min_events=200, min_slates=100, slate_seconds=60.0, min_effective_impressions=20.0),
        PolicySettings(slate_size=2, exploration_slots=1),
    )
    return run_retrain(sections, checkpoints=root, stop=threading.Event(), tell=hear), told


def test_a_model_made_anew_is_judged_by_clicks_and_slates_that_nobody_has_learnt_and_promoted(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    found, told = retrained(kafka, tmp_path, epochs=20)

    assert found.verdict.status == "promoted", found.verdict.reason
    assert found.announcement == newest_announcement(kafka).announcement
    assert found.announcement is not None
    assert (found.announcement.lineage, found.announcement.generation) == (found.lineage, 2)
    assert any(line.startswith("caught up") for line in told)
    assert found.verdict.events >= 200
    assert found.verdict.compared is not None
    assert found.verdict.compared.slates >= 100
