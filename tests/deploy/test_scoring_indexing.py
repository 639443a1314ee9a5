"""A scoring worker with an index: it follows every version, and slates stay what they say they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from deploy.scoring import indexing
from deploy.scoring.arms import Arms
from deploy.scoring.indexing import Changed, Indexing, Search
from deploy.scoring.models import Models
from deploy.scoring.shelf import Shelf
from deploy.scoring.slates import Query, Slates, Stock
from model.index import Index, index_of
from model.settings import ArmSettings, PolicySettings
from stream.events import Cause, ModelAnnouncement
from stream.settings import KafkaSettings
from tests.deploy.test_scoring_models import Message
from tests.trainer.clicks import clicks, in_batches
from tests.trainer.publishing import SETTINGS, Trainer, trainer_in

NOW_MS = 1_700_000_000_000
CAUSE = Cause(topic="clicks", partition=0, offset=0, arrived_at_ms=0)
GREEDY = PolicySettings(temperature=0.0, exploration_slots=0)
FEW_ITEMS = 20


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    """Of thirty items twenty have a row: again and again one item goes and another one gets its row."""
    with trainer_in(tmp_path, SETTINGS.model_copy(update={"max_items": FEW_ITEMS})) as trainer:
        yield trainer


def models_with(from_items: int | None, *, share: float = 1.0) -> Models:
    indexing = Indexing(from_items, share)
    return Models(KafkaSettings(), checkpoint=None, warm_up_users=2, indexing=indexing)


def served(models: Models, announcement: ModelAnnouncement | None) -> Shelf:
    assert announcement is not None
    models.hear([Message(msgspec.json.encode(announcement))])
    assert models.live is not None
    assert models.live.version == announcement.name
    return models.live


def items_for(shelf: Shelf, history: tuple[str, ...]) -> list[str]:
    (slate,) = Slates(GREEDY).draw(Stock(shelf, now_ms=NOW_MS), [Query("u", "r", CAUSE, history, 10)])
    assert slate is not None
    return [item.item_id for item in slate.items]


def test_the_index_follows_every_version_and_an_item_whose_row_went_to_another_never_comes_back(
    trainer: Trainer,
) -> None:
    models = models_with(from_items=5)
    ever: set[str] = set()

    for batch in in_batches(clicks(400), 40):
        trainer.learn(batch)
        shelf = served(models, trainer.publish())

        known = {shelf.catalogue.item_of(row) for row in shelf.catalogue.live_rows().tolist()}
        history = tuple(sorted(known))[:3]
        found = items_for(shelf, history)
        assert shelf.index is not None
        assert found == items_for(dataclasses.replace(shelf, index=None), history)
        assert set(found) <= known - set(history)
        ever |= known

    assert len(ever) > FEW_ITEMS, "no row was ever given to another item"


def test_a_small_catalogue_has_no_index_and_gets_one_when_it_has_grown(trainer: Trainer) -> None:
    models = models_with(from_items=15)
    had: list[bool] = []

    for batch in in_batches(clicks(400), 8):
        trainer.learn(batch)
        shelf = served(models, trainer.publish())
        had.append(shelf.index is not None)
        assert had[-1] == (shelf.catalogue.size > 15)

    assert (had[0], had[-1]) == (False, True)


def test_what_serves_keeps_its_own_index_while_the_next_version_gets_another(trainer: Trainer) -> None:
    models = models_with(from_items=5)
    batches = list(in_batches(clicks(400), 40))
    trainer.learn(batches[0])
    before = served(models, trainer.publish())
    first = items_for(before, ())

    with models.borrowed() as held:
        trainer.learn(batches[1])
        after = served(models, trainer.publish())

        assert held is before
        assert after.index is not before.index
        assert items_for(before, ()) == first


def clustered(count: int = 601) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(12, 8, generator=generator).repeat_interleave(50, dim=0)
    table = torch.cat((torch.zeros(1, 8), table + 0.2 * torch.randn(table.shape, generator=generator)))
    return table[:count]


def test_propensities_are_true_though_the_index_misses_most_of_the_catalogue(trainer: Trainer) -> None:
    trainer.learn(clicks(40))
    shelf = served(models_with(from_items=None), trainer.publish())
    narrow = dataclasses.replace(shelf, index=narrow_index(shelf, lists=3, probes=1))
    policy = PolicySettings(temperature=0.5, exploration_slots=2, candidates=5)
    rows = shelf.catalogue.live_rows()
    weight_R = np.zeros(shelf.catalogue.size)
    draws = 3_000

    slates = Slates(policy)
    queries = [Query("u", f"r{number}", CAUSE, ("item-1",), 5) for number in range(draws)]
    for slate in slates.draw(Stock(narrow, now_ms=NOW_MS), queries):
        assert slate is not None
        assert slate.candidate_count == 5
        for item in slate.items:
            assert item.propensity is not None
            weight_R[shelf.catalogue.row_of(item.item_id)] += 1 / item.propensity

    eligible = [row for row in rows.tolist() if shelf.catalogue.item_of(row) != "item-1"]
    assert np.abs(weight_R[eligible] / draws - 1).max() < 0.25
    assert abs(weight_R[eligible].mean() / draws - 1) < 0.03


def narrow_index(shelf: Shelf, *, lists: int, probes: int) -> Index:
    assert shelf.item_RD is not None
    return index_of(shelf.item_RD, lists=lists, probes=probes, rng=np.random.default_rng(1))


def test_now_and_then_it_is_counted_what_an_index_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "CHECK_EVERY", 4)
    table = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    blind = index_of(table, lists=20, probes=1, rng=np.random.default_rng(1))
    before = [counted("checked"), counted("missed")]
    search = Search()

    for _ in range(5):
        search.best(
            table[1:3],
            table,
            blind,
            k=5,
            excluded_BE=torch.empty(2, 0, dtype=torch.int64),
            live_R=torch.arange(400) > 0,
        )

    assert counted("checked") - before[0] == 3 * 5
    assert 0 < counted("missed") - before[1] < 3 * 5


def counted(what: str) -> float:
    return REGISTRY.get_sample_value(f"sasrec_index_{what}_items_total") or 0.0


def test_a_model_of_another_lineage_gets_an_index_of_its_own() -> None:
    always = Indexing(from_items=10)
    table = clustered()
    first = always.index_for(table, before=None, changed=None)

    other = always.index_for(table.flip(0), before=first, changed=None)
    followed = always.index_for(table, before=first, changed=Changed(np.array([3]), np.array([], dtype=np.int64)))

    assert first is not None
    assert other is not None
    assert followed is not None
    assert not torch.equal(other.centre_LD, first.centre_LD)
    assert followed.centre_LD is first.centre_LD


def test_an_arm_that_serves_from_a_checkpoint_of_its_own_has_an_index_too(trainer: Trainer) -> None:
    trainer.learn(clicks(40))
    announcement = trainer.publish()
    assert announcement is not None
    policy = PolicySettings(arms={"theirs": ArmSettings(share=1.0, checkpoint=announcement.path)})

    (with_index,) = Arms(policy, indexing=Indexing(from_items=5)).ours
    (without,) = Arms(policy).ours

    assert with_index.shelf is not None
    assert with_index.shelf.index is not None
    assert without.shelf is not None
    assert without.shelf.index is None
