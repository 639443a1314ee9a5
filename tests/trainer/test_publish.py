"""What is published can be rebuilt to the byte, and what goes wrong on the way harms nobody."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from kafka.errors import KafkaTimeoutError
from prometheus_client import REGISTRY

import model.checkpoint
from model import store
from model.checkpoint import BrokenCheckpointError, delta_versions, full_versions, newest_checkpoint, verify
from model.delta import delta_path
from stream.events import ModelAnnouncement
from tests.trainer.clicks import clicks, in_batches
from tests.trainer.doomed_trainer import MODEL
from tests.trainer.publishing import KAFKA, SETTINGS, Topic, Trainer, assert_live_is, trainer_in
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.live import read_live, read_version
from trainer.lock import FencedError, only_trainer
from trainer.publish import Publisher, Workshop, announce, new_lineage


@pytest.mark.parametrize("max_items", [1_000, 12], ids=["growing", "evicting"])
def test_every_version_can_be_rebuilt_to_the_byte(tmp_path: Path, max_items: int) -> None:
    settings = SETTINGS.model_copy(update={"max_items": max_items})
    with trainer_in(tmp_path, settings) as trainer:
        for number, batch in enumerate(in_batches(clicks(360), 24)):
            trainer.learn(batch)
            announcement = trainer.publish(final=number in {6, 11})

            assert_live_is(announcement, trainer.learner)

    kinds = [one.kind for one in trainer.topic.announcements]
    assert [number for number, kind in enumerate(kinds) if kind == "full"] == [0, 6, 11]
    assert [one.version for one in trainer.topic.announcements] == list(range(1, 16))
    assert trainer.topic.announcements[6].delta_sha256 is not None


def test_rounded_versions_can_be_rebuilt_to_the_byte_and_learning_is_not_rounded(tmp_path: Path) -> None:
    alone = Learner(MODEL, SETTINGS)
    with trainer_in(tmp_path, SETTINGS.model_copy(update={"publish_precision": "bfloat16"})) as trainer:
        for number, batch in enumerate(in_batches(clicks(160), 20)):
            trainer.learn(batch)
            alone.learn(batch)
            announcement = trainer.publish(final=number == 4)

            assert_live_is(announcement, trainer.learner)

    rows = alone.catalogue.size
    learnt = trainer.learner.network.tensors(rows=rows)
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in alone.network.tensors(rows=rows).items())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in learnt.values())


def test_the_newest_full_ones_stay_and_the_first_and_the_deltas_that_a_reader_may_need(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        for number, batch in enumerate(in_batches(clicks(200), 20), start=1):
            trainer.learn(batch)
            trainer.publish(final=number in {3, 5, 8})

        folder = tmp_path / trainer.lineage
        assert full_versions(folder) == [1, 5, 8]
        assert delta_versions(folder) == [6, 7, 8, 9, 10]
        assert_live_is(trainer.topic.announcements[-1], trainer.learner)


def test_a_version_that_was_promoted_stays_whatever_comes_after_it(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        batches = list(in_batches(clicks(160), 20))
        for batch in batches[:3]:
            trainer.learn(batch)
            trainer.publish(final=True)
        folder = tmp_path / trainer.lineage

        back = announce(trainer.topic, KAFKA, verify(folder / "00000003"), generation=2)
        for batch in batches[3:]:
            trainer.learn(batch)
            trainer.publish(final=True)

        assert full_versions(folder) == [1, 3, 7, 8]
        assert read_live(back).serving.manifest.version == 3


def test_a_promotion_goes_on_where_nothing_can_be_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    with trainer_in(tmp_path) as trainer:
        trainer.learn(clicks(20))
        trainer.publish()
        disk.refused = 1

        announce(trainer.topic, KAFKA, verify(tmp_path / trainer.lineage / "00000001"), generation=2)

    assert trainer.topic.announcements[-1].generation == 2
    assert disk.refused == 0


class FullDisk:
    """The next so many files cannot be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            if self.refused:
                self.refused -= 1
                raise OSError(28, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_on_a_full_disk_learning_goes_on_and_the_next_version_says_what_both_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    disk = FullDisk(monkeypatch)
    failures = counted("sasrec_publication_failures_total")
    with trainer_in(tmp_path) as trainer:
        first, second, third, fourth = in_batches(clicks(80), 20)
        trainer.learn(first)
        before = trainer.publish()
        trainer.learn(second)
        disk.refused = 2
        lost = trainer.publish(final=kind == "full")
        partial = [name for name in store.names(tmp_path / trainer.lineage) if name.endswith(".partial")]
        disk.refused = 0
        trainer.learn(third)
        mended = trainer.publish()
        assert_live_is(mended, trainer.learner)
        trainer.learn(fourth)

        assert_live_is(trainer.publish(), trainer.learner)

    assert before is not None
    assert mended is not None
    assert (lost, partial, mended.kind, mended.version) == (None, [], "delta", 3)
    assert counted("sasrec_publication_failures_total") == failures + 1


class KeepsAll:
    """A store that lets nobody delete, as S3 does without `s3:DeleteObject`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0

        def refuse(place: store.Place) -> None:
            self.asked += 1
            raise PermissionError(13, "AccessDenied: s3:DeleteObject", str(place))

        monkeypatch.setattr(model.checkpoint, "remove", refuse)


def test_where_nothing_can_be_deleted_versions_are_published_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = KeepsAll(monkeypatch)
    failures, unpruned = counted("sasrec_publication_failures_total"), counted("sasrec_pruning_failures_total")
    kinds = []
    with trainer_in(tmp_path) as trainer:
        for number, batch in enumerate(in_batches(clicks(160), 20), start=1):
            trainer.learn(batch)
            announcement = trainer.publish(final=number in {4, 6, 8})
            assert_live_is(announcement, trainer.learner)
            kinds.append(announcement and announcement.kind)

    assert kinds == ["full", "delta", "delta", "full", "delta", "full", "delta", "full"]
    assert keeper.asked > 0
    assert counted("sasrec_publication_failures_total") == failures
    assert counted("sasrec_pruning_failures_total") == unpruned + 2


def test_an_announcement_that_could_not_be_withdrawn_is_withdrawn_with_the_next_version(tmp_path: Path) -> None:
    class Closed(Topic):
        """Takes announcements, and for a while nothing else."""

        is_closed = True

        def send(self, topic: str, *, key: bytes, value: bytes | None, headers: object = None) -> Topic:
            if value is None and self.is_closed:
                raise KafkaTimeoutError
            return super().send(topic, key=key, value=value, headers=headers)

    first, second = in_batches(clicks(40), 20)
    with trainer_in(tmp_path) as trainer:
        topic = Closed()
        trainer.publisher = Publisher(Workshop(KAFKA, topic, SETTINGS, tmp_path, trainer.publisher.term))
        trainer.publisher.begin(trainer.lineage, generation=1, live=None)
        trainer.publisher.forget_when_newer(["sasrec/old/1"])
        trainer.learn(first)
        published = trainer.publish()
        still_there = b"sasrec/old/1" not in topic.records
        topic.is_closed = False
        trainer.learn(second)
        trainer.publish()
        trainer.publisher.close()

    assert published is not None
    assert still_there
    assert topic.records[b"sasrec/old/1"] is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not done("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)):
        pytest.skip("mounting a small disk takes root; the fake one above stands in for it")
    yield disk
    assert done("umount", str(disk))


def done(command: str, *arguments: str) -> bool:
    """Whether a command of the system succeeded."""
    found = shutil.which(command)
    return found is not None and subprocess.run([found, *arguments], check=False, capture_output=True).returncode == 0


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"\0" * 1_000)


def empty(disk: Path) -> None:
    (disk / "ballast").unlink()


def forbid_writing(disk: Path) -> None:
    assert done("mount", "--bind", str(disk), str(disk))
    assert done("mount", "-o", "remount,ro,bind", str(disk))


def allow_writing(disk: Path) -> None:
    assert done("umount", str(disk))


@pytest.mark.parametrize(("spoil", "mend"), [(fill, empty), (forbid_writing, allow_writing)], ids=["full", "read-only"])
@pytest.mark.parametrize("kind", ["delta", "full"])
def test_a_real_disk_that_takes_nothing_more_loses_nothing(
    small_disk: Path, spoil: Callable[[Path], None], mend: Callable[[Path], None], kind: str
) -> None:
    first, second, third = in_batches(clicks(60), 20)
    with trainer_in(small_disk) as trainer:
        trainer.learn(first)
        trainer.publish()
        trainer.learn(second)
        spoil(small_disk)
        lost = trainer.publish(final=kind == "full")
        left = store.names(small_disk / trainer.lineage)
        mend(small_disk)
        trainer.learn(third)

        assert_live_is(trainer.publish(final=kind == "full"), trainer.learner)

    assert (lost, left) == (None, ["00000001"])


def test_a_trainer_is_refused_where_nothing_can_be_written(small_disk: Path) -> None:
    forbid_writing(small_disk)

    with pytest.raises(ValueError, match=r"Read-only file system.*state\.checkpoints"), only_trainer(small_disk):
        pass
    allow_writing(small_disk)


def test_while_a_slow_disk_writes_learning_goes_on_and_what_was_copied_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, sync = threading.Event(), os.fsync
    first, second = in_batches(clicks(40), 20)
    with trainer_in(tmp_path) as trainer:
        monkeypatch.setattr(os, "fsync", lambda descriptor: (written.wait(60), sync(descriptor)))
        trainer.learn(first)
        as_copied = Learner(MODEL, SETTINGS)
        as_copied.learn(first)
        trainer.publisher.publish(trainer.learner, Cut(offsets={0: 20}), trainer.boundaries)

        trainer.learn(second)  # changes the weights that are being written
        pending = trainer.publisher.finished()
        due = trainer.publisher.is_due(examples_trained=40)
        written.set()
        published = trainer.publisher.finished(wait=True)

    assert (pending, due) == (None, False)
    assert published is not None
    assert_live_is(published.announcement, as_copied)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(ValueError, match=r"cannot be written.*state\.checkpoints"), only_trainer(tmp_path / "file"):
        pass


def test_after_going_back_to_an_older_cut_what_is_live_stays_until_as_much_is_learnt(tmp_path: Path) -> None:
    batches = list(in_batches(clicks(100), 20))
    with trainer_in(tmp_path) as trainer:
        for batch in batches[:4]:
            trainer.learn(batch)
            live = trainer.publish()
        assert live is not None
        again = Trainer(tmp_path, trainer.topic, SETTINGS, trainer.publisher.term)
        again.learn(batches[0])  # as the first full version had
        again.publisher.begin(trainer.lineage, generation=1, live=live)
        due = []
        for batch in batches[1:]:
            due.append(again.publisher.is_due(examples_trained=again.learner.examples_trained))
            again.learn(batch)
        due.append(again.publisher.is_due(examples_trained=again.learner.examples_trained))
        announcement = again.publish()
        again.publisher.close()

    assert due == [False, False, False, True, True]
    assert announcement is not None
    assert (announcement.kind, announcement.version) == ("full", 5)
    assert_live_is(announcement, again.learner)


def test_versions_that_were_never_announced_are_never_given_again(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        trainer.learn(list(clicks(20)))
        trainer.publish()
        store.create(delta_path(tmp_path, trainer.lineage, 7), b"written, and then its trainer was killed")

        trainer.publisher.begin(trainer.lineage, generation=1, live=None)
        announcement = trainer.publish()

    assert announcement is not None
    assert announcement.version == 8


def test_a_trainer_whose_folder_was_taken_over_publishes_nothing(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        trainer.learn(list(clicks(20)))
        announced = trainer.publish()
        store.create(tmp_path / ".terms" / "00000099.json", b'{"holder":"another"}')
        trainer.learn(list(clicks(20)))

        with pytest.raises(FencedError, match=r"term 99\) has taken over.*term 1\).*stop it"):
            trainer.publish()

    assert trainer.topic.announcements == [announced]
    assert (full_versions(tmp_path / trainer.lineage), delta_versions(tmp_path / trainer.lineage)) == ([1], [])


def test_terms_count_on_and_old_claims_go(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        with only_trainer(tmp_path) as term:
            epochs.append(term.epoch)

    assert epochs == [1, 2, 3]
    assert store.names(tmp_path / ".terms") == ["00000003.json"]


def test_a_newer_term_or_lineage_withdraws_what_older_ones_announced(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        trainer.learn(list(clicks(20)))
        first = trainer.publish()
        assert first is not None
        trainer.publisher.begin(new_lineage(), generation=2, live=first)
        second = trainer.publish()

    assert second is not None
    assert {key: value is None for key, value in trainer.topic.records.items()} == {
        first.key.encode(): True,
        second.key.encode(): False,
    }


def announced(**changes: object) -> ModelAnnouncement:
    plain = ModelAnnouncement(
        model="sasrec", lineage="b", version=5, path="", manifest_sha256="", created_at_ms=1, examples_trained=1
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"version": 6}, {}),
        ({"epoch": 2, "version": 1}, {"epoch": 1}),
        ({"generation": 2, "lineage": "a", "version": 1}, {"generation": 1}),
        ({"generation": 2, "version": 1, "epoch": 0}, {"generation": 1, "epoch": 9}),
        ({"generation": 1, "lineage": "c", "version": 1}, {"generation": 1}),
    ],
)
def test_which_of_two_announcements_counts_does_not_depend_on_which_was_read_last(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert announced(**one).supersedes(announced(**other))
    assert not announced(**other).supersedes(announced(**one))
    assert announced(**one).supersedes(None)


def test_of_lineages_announced_without_a_rank_the_last_one_counts() -> None:
    assert announced(lineage="a").supersedes(announced())
    assert announced().supersedes(announced(lineage="a"))


def test_a_version_is_found_by_its_name_as_long_as_it_stands_there(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        for batch in in_batches(clicks(60), 20):
            trainer.learn(batch)
            trainer.publish()

        found = read_version(tmp_path, trainer.lineage, 3)
        first = read_version(tmp_path, trainer.lineage, 1)

        assert found.catalogue.same_as(trainer.learner.catalogue)
        assert (first.manifest.version, found.manifest.version) == (1, 3)
        with pytest.raises(BrokenCheckpointError, match=r"not in .* any more"):
            read_version(tmp_path, trainer.lineage, 4)


def test_without_its_deltas_a_version_is_refused_and_the_full_one_is_left(tmp_path: Path) -> None:
    with trainer_in(tmp_path) as trainer:
        for batch in in_batches(clicks(80), 20):
            trainer.learn(batch)
            live = trainer.publish()
        assert live is not None
        store.remove(delta_path(tmp_path, trainer.lineage, 3))

        with pytest.raises(BrokenCheckpointError, match=r"00000003\.delta.*wait for the next full"):
            read_live(live)

        left = newest_checkpoint(tmp_path / trainer.lineage, on_broken=lambda _: None)
    assert left is not None
    assert left.manifest.version == 1


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0
