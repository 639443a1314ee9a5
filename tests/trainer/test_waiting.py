"""A row is earned by clicks, counted exactly and within a bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.catalogue import PADDING
from stream.examples import ClickExample, ExampleId
from tests.trainer.clicks import click
from tests.trainer.doomed_trainer import MODEL, TRAINER
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.publish import write
from trainer.state import resume
from trainer.waiting import Waiting

PATIENT = TRAINER.model_copy(update={"admit_after": 3})


def clicked(*items: str, first: int = 0, context: tuple[str, ...] = ("known",)) -> list[ClickExample]:
    """One click of a user of its own on each item."""
    return [
        click(ExampleId("clicks", 0, first + place, 0), f"user-{first + place}", context, item_id)
        for place, item_id in enumerate(items)
    ]


def patient() -> Learner:
    learner = Learner(MODEL, PATIENT)
    learner.admit(["known", "other"])
    return learner


def test_an_item_gets_a_row_with_the_click_that_makes_it_enough_and_is_learnt_with_it() -> None:
    learner = patient()

    learner.learn(clicked("new", "new"))
    assert learner.catalogue.row_of("new") == PADDING
    assert learner.optimiser.steps == 0

    learner.learn(clicked("new", first=2))
    assert learner.catalogue.row_of("new") != PADDING
    assert learner.optimiser.steps == 1
    assert learner.waiting.clicks == {}


def test_a_history_full_of_items_without_a_row_is_learnt_from_what_has_one() -> None:
    learner = patient()

    learner.learn(clicked("other", context=("rare", "known", "rarer")))

    assert len(learner.catalogue) == 2
    assert learner.optimiser.steps == 1
    assert np.isfinite(learner.network.item_RD.detach().numpy()).all()


def test_what_was_counted_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    learner = patient()
    learner.learn(clicked("new", "new", "other"))

    written = write(learner, Cut(), root=tmp_path, lineage="lineage", version=1)
    resumed = resume(written.path, PATIENT).learner
    resumed.learn(clicked("new", first=3))

    assert resumed.catalogue.row_of("new") != PADDING


def test_past_the_bound_the_least_recently_clicked_is_forgotten() -> None:
    waiting = Waiting()

    waiting.ready(["a", "b", "a", "c"], after=3, most=2)

    assert waiting.clicks == {"a": 2, "c": 1}
    assert list(waiting.ready(["b", "c", "c"], after=3, most=2)) == ["c"]


def test_a_row_is_taken_over_without_anything_of_the_item_that_had_it() -> None:
    """The weights, the optimiser, the counts and both baselines know nothing of the new item."""
    learner = Learner(MODEL, TRAINER.model_copy(update={"max_items": 3}))
    learner.learn(clicked("old", "old", "old"))
    row = learner.catalogue.row_of("old")
    before_D = learner.network.item_RD.detach()[row].clone()

    learner.admit(["b", "c", "taker"])

    assert learner.catalogue.row_of("taker") == row
    assert learner.catalogue.row_of("old") == PADDING
    assert learner.catalogue.click_counts()[row] == learner.catalogue.recent_click_counts()[row] == 0
    assert not np.allclose(learner.network.item_RD.detach()[row], before_D)
    moments = learner.optimiser.tensors(rows=learner.catalogue.size)
    assert not moments["table.first_RD"][row].any()
    assert not moments["table.second_RD"][row].any()
    assert row not in learner.prequential.transitions.followers(np.arange(learner.catalogue.size)).row_S
