"""Of two trainers on one folder of checkpoints one is refused, also where nothing can be locked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from model.store import Place, create, names, place_of, read
from tests.trainer.clicks import clicks, in_batches
from tests.trainer.publishing import SETTINGS, Topic, Trainer, assert_live_is
from trainer.lock import TERMS, Claim, FencedError, only_trainer

WaitUntil = Callable[[Callable[[], Any]], Any]
LEASE = {"lease_seconds": 2.0, "beat_seconds": 0.05}
ENDED = {"lease_seconds": 0.2, "beat_seconds": 60.0}


@pytest.fixture
def remote(s3_url: str) -> Place:
    return place_of(s3_url)


def claim_of(root: Place) -> Claim:
    (name,) = names(root / TERMS)
    return msgspec.json.decode(read(root / TERMS / name), type=Claim)


def test_a_second_trainer_is_refused_while_the_first_renews_its_claim(remote: Place) -> None:
    with (
        only_trainer(remote, **LEASE),
        pytest.raises(ValueError, match=r"another trainer \(.* pid \d+ .*\) works in s3://.*stop it"),
        only_trainer(remote, **LEASE),
    ):
        pass


def test_after_a_clean_end_the_next_one_begins_at_once(remote: Place) -> None:
    with only_trainer(remote, **LEASE) as first:
        pass
    ended = claim_of(remote).ended

    with only_trainer(remote, lease_seconds=10_000.0) as second:
        assert (ended, first.epoch, second.epoch) == (True, 1, 2)


def test_a_claim_that_is_renewed_no_more_is_taken_over_and_its_holder_is_fenced(remote: Place) -> None:
    with only_trainer(remote, **ENDED) as killed, only_trainer(remote, **ENDED) as successor:
        successor.check()

        with pytest.raises(FencedError, match=r"term 2\) has taken over.*term 1"):
            killed.check()


def test_of_two_who_come_at_the_same_moment_one_is_refused(remote: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_after_another(place: Place, content: bytes) -> None:
        create(place, b'{"holder":"another"}')
        create(place, content)

    monkeypatch.setattr("trainer.lock.create", create_after_another)

    with pytest.raises(ValueError, match="has just begun"), only_trainer(remote, **LEASE):
        pass


def test_the_claim_is_renewed_beside_the_trainer(remote: Place, wait_until: WaitUntil) -> None:
    with only_trainer(remote, **LEASE):
        first = claim_of(remote).beat

        assert wait_until(lambda: claim_of(remote).beat > first)


def test_a_trainer_that_slept_through_its_successors_start_publishes_nothing_and_stops(remote: Place) -> None:
    first, second, third = in_batches(clicks(60), 20)
    topic = Topic()
    with only_trainer(remote, **ENDED) as term:
        sleeper = Trainer(remote, topic, SETTINGS, term)
        sleeper.learn(first)
        live = sleeper.publish()
        assert live is not None
        with only_trainer(remote, **ENDED) as newer:
            successor = Trainer(remote, topic, SETTINGS, newer)
            successor.publisher.begin(sleeper.lineage, generation=1, live=live)
            sleeper.learn(second)
            with pytest.raises(FencedError):
                sleeper.publish()
            for batch in (first, second, third):
                successor.learn(batch)
            announcement = successor.publish()
            successor.publisher.close()
        sleeper.publisher.close()

    assert announcement is not None
    assert (announcement.epoch, announcement.version) == (2, 2)
    assert_live_is(announcement, successor.learner)
    assert announcement.supersedes(live)


def test_every_version_in_an_object_store_can_be_rebuilt_to_the_byte(remote: Place) -> None:
    with only_trainer(remote, **ENDED) as term:
        trainer = Trainer(remote, Topic(), SETTINGS, term)
        for number, batch in enumerate(in_batches(clicks(120), 20)):
            trainer.learn(batch)
            announcement = trainer.publish(final=number == 3)

            assert_live_is(announcement, trainer.learner)
        trainer.publisher.close()

    assert names(remote) == [TERMS, trainer.lineage]


def test_what_cannot_be_renewed_is_tried_again(remote: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def silent(place: Place, content: bytes) -> None:
        failed.set()
        raise OSError("no answer")

    monkeypatch.setattr("trainer.lock.replace", silent)
    with only_trainer(remote, **LEASE) as term:
        assert failed.wait(60)
        term.check()
