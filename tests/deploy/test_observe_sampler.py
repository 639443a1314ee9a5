from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import NotLeaderForPartitionError
from kafka.structs import OffsetAndMetadata

from deploy.local.supervisor import ProcessState
from deploy.observe.endpoint import metrics_endpoint
from deploy.observe.offsets import Offsets
from deploy.observe.sampler import Rate, Sampler
from deploy.observe.scrape import scrape
from deploy.settings import Settings, StateSettings
from stream.clients import consumer, producer
from stream.settings import KafkaSettings
from stream.topics import CLICKS
from trainer import metrics

Wait = Callable[[Callable[[], Any]], Any]

TRAINER = ProcessState("trainer", "trainer", "running", os.getpid(), started_at_seconds=0.0, restarts=0, reason=None)
GONE = ProcessState("stream", "stream", "waiting", None, started_at_seconds=0.0, restarts=1, reason="killed")


def settings_in(directory: Path, kafka: KafkaSettings | None = None) -> Settings:
    return Settings(state=StateSettings(directory=directory), kafka=kafka or KafkaSettings())


def send_clicks(kafka: KafkaSettings, count: int) -> None:
    with producer(kafka) as sent:
        for number in range(count):
            sent.send(kafka.topic(CLICKS), partition=number % 2, value=b"{}")


def test_a_rate_settles_on_how_fast_a_count_grows() -> None:
    rate = Rate()

    rates = [rate.update(5.0 * second, at_seconds=float(second)) for second in range(20)]

    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(5.0, abs=0.01)


def test_a_count_that_falls_back_has_started_anew_and_is_no_negative_rate() -> None:
    rate = Rate()
    rate.update(100.0, at_seconds=1.0)
    rate.update(110.0, at_seconds=2.0)

    assert rate.update(0.0, at_seconds=3.0) == 5.0


def test_the_metrics_of_a_process_are_read_where_it_says_that_it_serves_them(tmp_path: Path) -> None:
    with metrics_endpoint(settings_in(tmp_path), name="trainer"):
        samples = scrape(tmp_path, "trainer", host="127.0.0.1", pid=os.getpid())
        other = scrape(tmp_path, "trainer", host="127.0.0.1", pid=os.getpid() + 1)
        unknown = scrape(tmp_path, "scoring", host="127.0.0.1", pid=os.getpid())
        file = (tmp_path / "processes" / "trainer.json").read_bytes()
        some = scrape(tmp_path, "trainer", host="127.0.0.1", pid=os.getpid(), only=("python_info", "nothing_like_it"))
    (tmp_path / "processes" / "trainer.json").write_bytes(file)

    assert samples is not None
    assert some is not None
    assert {sample.name for sample in some} == {"python_info"}
    assert "python_info" in {sample.name for sample in samples}
    assert other is None
    assert unknown is None
    assert scrape(tmp_path, "trainer", host="127.0.0.1", pid=os.getpid()) is None


@pytest.mark.broker
def test_lag_is_what_is_written_and_not_committed(kafka: KafkaSettings) -> None:
    send_clicks(kafka, 6)
    with consumer(kafka, group_id=kafka.group("stream")) as member:
        member.assign([TopicPartition(kafka.topic(CLICKS), 0)])
        member.commit({TopicPartition(kafka.topic(CLICKS), 0): OffsetAndMetadata(2, "", -1)})
    offsets = Offsets(kafka)

    progress = offsets.progress()

    totals = offsets.totals([CLICKS])
    offsets.close()
    clicks = [progress["stream"][CLICKS, partition] for partition in (0, 1)]
    assert [(one.committed, one.end, one.lag) for one in clicks] == [(2, 3, 1), (0, 3, 3)]
    assert set(progress) == {"stream", "trainer", "scoring"}
    assert totals == {CLICKS: 6}


@pytest.mark.broker
def test_a_look_holds_the_figures_of_processes_and_topics(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    settings = settings_in(tmp_path, kafka)
    metrics.PREQUENTIAL_HR10.labels(ranker="sasrec").set(0.25)
    with metrics_endpoint(settings, name="trainer"):
        sampler = Sampler(settings, lambda: [TRAINER, GONE])
        sampler.start()
        try:
            send_clicks(kafka, 4)
            look = wait_until(lambda: sampler.newest if sampler.newest and sampler.newest.snapshot.lag else None)
            lag = wait_until(lambda: sampler.newest and (sampler.newest.snapshot.lag or {}).get("stream"))
        finally:
            sampler.stop()

    assert look.observation.answered == {"trainer"}
    assert look.snapshot.processes == (TRAINER, GONE)
    assert look.snapshot.hit_rate["sasrec"] == 0.25
    assert look.snapshot.examples_trained is not None
    assert lag == 4


@pytest.mark.broker
def test_a_broker_that_does_not_say_how_much_there_is_at_the_start_is_asked_again(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = Offsets.totals

    def unanswered(_self: Offsets, _names: Iterable[str]) -> dict[str, int]:
        raise NotLeaderForPartitionError("the topics have just been made")

    monkeypatch.setattr(Offsets, "totals", unanswered)
    sampler = Sampler(settings_in(tmp_path, kafka), lambda: [TRAINER])
    monkeypatch.setattr(Offsets, "totals", answered)
    sampler.start()
    try:
        look = wait_until(lambda: sampler.newest if sampler.newest and sampler.newest.snapshot.lag else None)
    finally:
        sampler.stop()

    assert look.snapshot.recommendations == 0
