"""What a scoring worker makes of announcements: one whole version after another, and nothing wrong in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client import REGISTRY

from deploy.scoring.arms import Arms
from deploy.scoring.models import Models
from deploy.scoring.shelf import Shelf
from model import store
from model.checkpoint import CATALOGUE, ServingModel
from model.settings import ArmSettings, PolicySettings
from stream.events import ModelAnnouncement
from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, in_batches
from tests.trainer.publishing import SETTINGS, Trainer, trainer_in
from trainer.learner import Learner
from trainer.live import read_live

BATCHES = list(in_batches(clicks(400), 20))


class Message(NamedTuple):
    """A record of `models`."""

    value: bytes | None
    offset: int = 0
    partition: int = 0


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    with trainer_in(tmp_path) as trainer:
        yield trainer


@pytest.mark.parametrize("setting", ["scoring.checkpoint", "policy.arms.NAME.checkpoint"])
def test_a_checkpoint_that_settings_serve_from_is_still_there_at_the_next_start(trainer: Trainer, setting: str) -> None:
    def started(path: str) -> str | None:
        """A worker's model by the setting, as at its start."""
        if setting == "scoring.checkpoint":
            models = Models(KafkaSettings(), checkpoint=path, warm_up_users=2)
            models.run(threading.Event())
            shelf = models.live
        else:
            (arm,) = Arms(PolicySettings(arms={"old": ArmSettings(share=1.0, checkpoint=path)})).ours
            shelf = arm.shelf
        return None if shelf is None else shelf.version

    for batch in BATCHES[:2]:
        trainer.learn(batch)
        announcement = trainer.publish(final=True)
    assert announcement is not None
    first = started(announcement.path)

    for batch in BATCHES[2:8]:
        trainer.learn(batch)
        trainer.publish(final=True)

    assert started(announcement.path) == first == announcement.name


@pytest.fixture
def models() -> Models:
    return Models(KafkaSettings(), checkpoint=None, warm_up_users=2)


def publish(trainer: Trainer, count: int = 1, *, final: bool = False) -> list[ModelAnnouncement]:
    """So many more micro-batches are learnt, each a version."""
    made = []
    for _ in range(count):
        trainer.learn(BATCHES[trainer.learner.examples_trained // 20])
        announcement = trainer.publish(final=final)
        assert announcement is not None
        made.append(announcement)
    return made


def hear(models: Models, *announcements: ModelAnnouncement | None) -> str | None:
    """What serves after these came in one poll."""
    models.hear(
        Message(None if announcement is None else msgspec.json.encode(announcement), offset)
        for offset, announcement in enumerate(announcements)
    )
    return None if models.live is None else models.live.version


def assert_serves(models: Models, expected: Learner | ServingModel) -> None:
    shelf = models.live
    assert shelf is not None
    assert shelf.network is not None
    assert shelf.item_RD is not None
    network = expected.network if isinstance(expected, Learner) else expected.model
    rows = expected.catalogue.size
    assert shelf.catalogue.same_as(expected.catalogue)
    assert shelf.item_RD.shape[0] == rows == len(shelf.live_R) == len(shelf.popularity_R)
    for name, tensor in network.tensors(rows=rows).items():
        assert tensor.numpy().tobytes() == shelf.network.tensors(rows=rows)[name].numpy().tobytes(), name
    assert shelf.item_RD.numpy().tobytes() == network.tensors(rows=rows)["item_RD"].numpy().tobytes()


def test_every_announced_version_is_served_to_the_byte_and_only_the_first_is_loaded_whole(
    trainer: Trainer, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("deploy.scoring.models.read_serving", counting(loaded, "deploy.scoring.models.read_serving"))

    for number in range(12):
        (announcement,) = publish(trainer, final=number in {5, 8})

        assert hear(models, announcement) == announcement.name
        assert_serves(models, trainer.learner)
    assert len(loaded) == 1


def test_rounded_versions_are_followed_and_proven_by_full_ones(tmp_path: Path, models: Models) -> None:
    with trainer_in(tmp_path, SETTINGS.model_copy(update={"publish_precision": "bfloat16"})) as trainer:
        broken = counted("sasrec_broken_checkpoints_total")
        for number in range(6):
            (announcement,) = publish(trainer, final=number == 3)

            assert hear(models, announcement) == announcement.name
            assert_serves(models, read_live(announcement).serving)
    assert counted("sasrec_broken_checkpoints_total") == broken


def test_versions_that_came_in_one_poll_and_those_that_were_missed_are_caught_up_with(
    trainer: Trainer, models: Models
) -> None:
    versions = publish(trainer, 9)

    hear(models, *versions[:2])
    assert hear(models, versions[8]) == versions[8].name
    assert_serves(models, trainer.learner)
    assert hear(models, *versions[:8]) == versions[8].name, "what is past is passed over"


def test_a_worker_that_starts_from_nothing_rebuilds_the_live_model(trainer: Trainer, models: Models) -> None:
    publish(trainer, 3)
    publish(trainer, final=True)
    *_, newest = publish(trainer, 7)

    assert hear(models, newest) == newest.name
    assert_serves(models, trainer.learner)
    (more,) = publish(trainer)
    assert hear(models, more) == more.name
    assert_serves(models, trainer.learner)


def test_what_a_batch_holds_stays_as_it_is_however_many_versions_come_meanwhile(
    trainer: Trainer, models: Models, wait_until: Callable[[Callable[[], Any]], Any]
) -> None:
    first, second, third, fourth = publish(trainer, 4)
    hear(models, first)
    hear(models, second)
    with models.borrowed() as held:
        assert held is not None
        before = bytes_of(held)
        assert hear(models, third) == third.name
        swapping = threading.Thread(target=hear, args=(models, fourth))
        swapping.start()
        while not models._is_read(held):
            pass

        assert bytes_of(held) == before
        assert models.live is not held
        assert models.live is not None
        assert models.live.version == third.name, "the copy that is still read is not touched"
    swapping.join()

    assert models.live.version == fourth.name
    assert_serves(models, trainer.learner)


def torn(path: store.Place) -> None:
    path.write_bytes(store.read(path)[:-20])  # type: ignore[union-attr]


def bit_flipped(path: store.Place) -> None:
    raw = bytearray(store.read(path))
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)  # type: ignore[union-attr]


every_harm = pytest.mark.parametrize("harm", [torn, bit_flipped, store.remove], ids=["torn", "bit-flipped", "missing"])


@every_harm
def test_after_a_harmed_delta_the_old_model_serves_on_until_the_next_full_one(
    trainer: Trainer, models: Models, harm: Callable[[store.Place], None]
) -> None:
    good = publish(trainer, 3)
    hear(models, *good)
    broken = counted("sasrec_broken_checkpoints_total")
    (harmed,) = publish(trainer)
    harm(store.place_of(harmed.path))
    later = publish(trainer, 3)

    served = [hear(models, announcement) for announcement in (harmed, *later)]
    assert served == [good[-1].name] * 4
    assert counted("sasrec_broken_checkpoints_total") == broken + 4
    (full,) = publish(trainer, final=True)
    assert hear(models, full) == full.name
    assert_serves(models, trainer.learner)
    (after,) = publish(trainer)
    assert hear(models, after) == after.name
    assert_serves(models, trainer.learner)


@every_harm
def test_a_worker_that_starts_on_a_broken_chain_serves_the_full_one_until_the_next(
    trainer: Trainer, models: Models, harm: Callable[[store.Place], None]
) -> None:
    publish(trainer, 1)
    (full,) = publish(trainer, final=True)
    base = read_live(full).serving
    versions = publish(trainer, 4)
    harm(store.place_of(versions[1].path))

    assert hear(models, versions[-1]) == full.name
    assert_serves(models, base)
    assert hear(models, *publish(trainer)) == full.name
    (mended,) = publish(trainer, final=True)
    assert hear(models, mended) == mended.name
    assert_serves(models, trainer.learner)


def test_a_worker_that_starts_on_a_harmed_newest_delta_serves_the_last_full_one(
    trainer: Trainer, models: Models
) -> None:
    full, *_, newest = publish(trainer, 4)
    torn(store.place_of(newest.path))

    assert hear(models, newest) == full.name


def test_a_delta_that_comes_late_closes_the_hole(trainer: Trainer, models: Models) -> None:
    hear(models, *publish(trainer, 2))
    (late,) = publish(trainer)
    path = store.place_of(late.path)
    raw = store.read(path)
    store.remove(path)
    hear(models, *publish(trainer))
    store.create(path, raw)

    (newest,) = publish(trainer)
    assert hear(models, newest) == newest.name
    assert_serves(models, trainer.learner)


def test_a_hole_that_was_closed_is_forgotten_when_old_deltas_go(trainer: Trainer, models: Models) -> None:
    hear(models, *publish(trainer, 2))
    (late,) = publish(trainer)
    path = store.place_of(late.path)
    raw = store.read(path)
    store.remove(path)
    hear(models, *publish(trainer))
    store.create(path, raw)
    hear(models, *publish(trainer))
    store.remove(path)

    (newest,) = publish(trainer)
    assert hear(models, newest) == newest.name
    assert_serves(models, trainer.learner)


def test_while_a_slow_store_is_read_the_old_model_serves(
    trainer: Trainer, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = publish(trainer, 2)
    hear(models, first)
    asked, answered = threading.Event(), threading.Event()

    def slow(place: store.Place) -> bytes:
        asked.set()
        answered.wait(60)
        return store.read(place)

    monkeypatch.setattr("model.delta.read", slow)
    swapping = threading.Thread(target=hear, args=(models, second))
    swapping.start()
    asked.wait(60)
    with models.borrowed() as meanwhile:
        assert meanwhile is not None
        assert meanwhile.version == first.name
    answered.set()
    swapping.join()

    assert_serves(models, trainer.learner)


def test_deltas_that_lead_elsewhere_than_the_full_checkpoint_are_given_up_for_it(
    trainer: Trainer, models: Models
) -> None:
    hear(models, *publish(trainer))
    hear(models, *publish(trainer))
    assert models._buffers is not None
    assert models._buffers._behind is not None
    models._buffers._behind.model.item_RD.data[0] += 1.0
    broken = counted("sasrec_broken_checkpoints_total")

    (full,) = publish(trainer, final=True)
    assert hear(models, full) == full.name

    assert counted("sasrec_broken_checkpoints_total") == broken + 1
    assert_serves(models, trainer.learner)


def test_a_trainer_or_lineage_whose_time_is_over_is_passed_over(trainer: Trainer, models: Models) -> None:
    first, second = publish(trainer, 2)
    promoted = msgspec.structs.replace(first, generation=2, epoch=0)
    passed_over = counted("sasrec_superseded_announcements_total")

    assert hear(models, promoted, second) == first.name
    assert hear(models, second) == first.name
    assert hear(models, msgspec.structs.replace(first, generation=2, epoch=3)) == first.name
    assert hear(models, msgspec.structs.replace(second, generation=2, epoch=2)) == first.name
    assert counted("sasrec_superseded_announcements_total") == passed_over + 3


def test_withdrawn_announcements_and_those_of_other_models_change_nothing(trainer: Trainer, models: Models) -> None:
    first, second = publish(trainer, 2)
    hear(models, first)

    assert hear(models, None) == first.name
    assert hear(models, msgspec.structs.replace(second, model="another")) == first.name


@pytest.mark.parametrize(
    "changes",
    [
        {"lineage": "another"},
        {"version": 7},
        {"path": "/nowhere/00000001"},
        {"path": "ftp-that-nobody-knows://somewhere/00000001"},
        {"manifest_sha256": "0" * 64},
    ],
)
def test_an_announcement_of_files_that_are_another_models_is_refused(
    trainer: Trainer, models: Models, changes: dict[str, Any]
) -> None:
    (first,) = publish(trainer)
    hear(models, first)
    broken = counted("sasrec_broken_checkpoints_total")

    served = hear(models, msgspec.structs.replace(first, **{"generation": 9, "lineage": "b", **changes}))

    assert served == first.name
    assert counted("sasrec_broken_checkpoints_total") == broken + 1


def test_an_announcement_that_cannot_be_read_is_reported(trainer: Trainer, models: Models) -> None:
    (first,) = publish(trainer)
    hear(models, first)
    broken = counted("sasrec_broken_checkpoints_total")

    models.hear([Message(b"\x00rubbish", 7)])

    assert models.live is not None
    assert models.live.version == first.name
    assert counted("sasrec_broken_checkpoints_total") == broken + 1


def test_a_catalogue_of_another_checkpoint_is_refused(trainer: Trainer, models: Models) -> None:
    (first,) = publish(trainer)
    other = publish(trainer, 3)[-1]
    (full,) = publish(trainer, final=True)
    hear(models, first)
    assert other
    catalogue = store.read(store.place_of(first.path) / CATALOGUE)
    (Path(full.path) / CATALOGUE).write_bytes(catalogue)

    assert hear(models, msgspec.structs.replace(full, delta_sha256=None)) == first.name


def test_what_changed_is_told_to_whoever_keeps_an_index(trainer: Trainer, models: Models) -> None:
    first, second = publish(trainer, 2)

    hear(models, first)
    whole = models.live
    hear(models, second)
    changed = models.live.changed_rows if models.live is not None else None

    assert whole is not None
    assert whole.changed_rows is None
    assert changed is not None
    assert set(changed.tolist()) <= set(range(1, trainer.learner.catalogue.size))
    assert len(changed) > 0


def counting(calls: list[object], name: str) -> Callable[..., ServingModel]:
    module, _, attribute = name.rpartition(".")
    original = getattr(__import__(module, fromlist=[attribute]), attribute)

    def counted_call(*args: object, **named: object) -> ServingModel:
        calls.append(args)
        made: ServingModel = original(*args, **named)
        return made

    return counted_call


def bytes_of(shelf: Shelf) -> list[bytes]:
    assert shelf.network is not None
    return [tensor.numpy().tobytes() for tensor in shelf.network.state_dict().values()]


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0
