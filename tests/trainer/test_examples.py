"""A micro-batch is as large as what waits, between a floor and a ceiling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from stream.settings import KafkaSettings
from tests.trainer.clicks import clicks, send
from tests.trainer.doomed_trainer import MODEL, TRAINER
from trainer.cut import Cut
from trainer.examples import ExampleReader, Patience, newest_announcement
from trainer.loop import FAR_BEHIND_BATCHES, TrainerLoop, run_trainer
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.broker

Wait = Callable[[Callable[[], Any]], Any]


@contextmanager
def reading(kafka: KafkaSettings) -> Iterator[ExampleReader]:
    with closing(ExampleReader(kafka, announcements_from={})) as reader:
        reader.resume(Cut())
        yield reader


def sizes(reader: ExampleReader, patience: Patience, *, until: int) -> list[int]:
    """Of the micro-batches in which so many examples are handed out."""
    found: list[int] = []
    while sum(found) < until:
        found.append(len(reader.gather(patience, stop=threading.Event()).examples))
    return [size for size in found if size]


def test_what_waits_comes_at_the_ceiling_and_then_in_what_is_left(kafka: KafkaSettings) -> None:
    send(kafka, clicks(500, partitions=2))

    with reading(kafka) as reader:
        found = sizes(reader, Patience(least=200, most=200, wait_seconds=5.0), until=500 - 100)
        found += sizes(reader, Patience(least=8, most=200, wait_seconds=5.0), until=100)

    assert found[:2] == [200, 200]
    assert sum(found) == 500


def test_a_trickle_is_waited_for_until_it_is_the_floor(kafka: KafkaSettings, wait_until: Wait) -> None:
    examples = clicks(30)
    send(kafka, examples[:10])

    with reading(kafka) as reader:
        found: list[int] = []
        patience = Patience(least=25, most=100, wait_seconds=60.0)
        thread = threading.Thread(target=lambda: found.extend(sizes(reader, patience, until=25)))
        thread.start()
        wait_until(lambda: reader.cut.offsets.get(0) == 10)
        send(kafka, examples[10:])
        thread.join()

    assert found == [30]


def test_what_is_less_than_the_floor_is_learnt_when_the_wait_is_over(kafka: KafkaSettings) -> None:
    send(kafka, clicks(3))

    with reading(kafka) as reader:
        found = sizes(reader, Patience(least=25, most=100, wait_seconds=0.01), until=3)

    assert sum(found) == 3


def test_where_the_floor_is_above_the_ceiling_the_ceiling_is_enough(kafka: KafkaSettings) -> None:
    send(kafka, clicks(40, partitions=2))

    with reading(kafka) as reader:
        found = sizes(reader, Patience(least=32, most=16, wait_seconds=60.0), until=32)

    assert max(found) == 16


@contextmanager
def learning(kafka: KafkaSettings, checkpoints: Path, **settings: Any) -> Iterator[Sequence[Mapping[str, Any]]]:  # noqa: ANN401
    """A trainer in a thread, and what it says."""
    stop, trainer = threading.Event(), TRAINER.model_copy(update=settings)
    with structlog.testing.capture_logs() as said:
        thread = threading.Thread(target=lambda: run_trainer(kafka, MODEL, trainer, checkpoints=checkpoints, stop=stop))
        thread.start()
        try:
            yield said
        finally:
            stop.set()
            thread.join()


def test_far_behind_it_learns_full_micro_batches_and_says_when_it_begins_and_ends(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    full = 16
    send(kafka, clicks(3 * FAR_BEHIND_BATCHES * full, partitions=2))
    trained, steps = value("sasrec_examples_trained_total"), value("sasrec_micro_batch_examples_count")

    with learning(kafka, tmp_path, min_batch=4, max_batch=full) as said:
        wait_until(lambda: any(line["event"] == "caught up" for line in said))

    told = [line["event"] for line in said if line["event"] in ("catching up at full micro-batches", "caught up")]
    assert told == ["catching up at full micro-batches", "caught up"]
    trained, steps = (
        value("sasrec_examples_trained_total") - trained,
        value("sasrec_micro_batch_examples_count") - steps,
    )
    assert trained / steps > 0.75 * full


def test_the_more_examples_wait_the_more_are_learnt_at_once(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    send(kafka, clicks(960, partitions=2))
    trained, steps = value("sasrec_examples_trained_total"), value("sasrec_micro_batch_examples_count")
    small, bounded = batches_up_to(16), batches_up_to(64)

    with learning(kafka, tmp_path, min_batch=4, max_batch=16, catch_up_batch=64):
        wait_until(lambda: value("sasrec_examples_trained_total") == trained + 960)

    steps = value("sasrec_micro_batch_examples_count") - steps
    assert steps < 960 / 32
    assert batches_up_to(16) > small
    assert batches_up_to(64) - bounded == steps


def test_a_lower_ceiling_alone_bounds_every_micro_batch(kafka: KafkaSettings, tmp_path: Path, wait_until: Wait) -> None:
    send(kafka, clicks(960, partitions=2))
    trained, steps = value("sasrec_examples_trained_total"), value("sasrec_micro_batch_examples_count")
    bounded = batches_up_to(16)
    unset = TrainerSettings()

    with learning(kafka, tmp_path, max_batch=16, min_batch=unset.min_batch, catch_up_batch=unset.catch_up_batch):
        wait_until(lambda: value("sasrec_examples_trained_total") == trained + 960)

    assert batches_up_to(16) - bounded == value("sasrec_micro_batch_examples_count") - steps


def test_idle_it_takes_no_step_publishes_nothing_and_only_waits_for_a_fetch(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [0]
    turn = TrainerLoop.turn

    def counted(loop: TrainerLoop, stop: threading.Event) -> None:
        turn(loop, stop)
        turns[0] += 1

    monkeypatch.setattr(TrainerLoop, "turn", counted)
    send(kafka, clicks(40))
    done_before = done()
    with learning(kafka, tmp_path, full_seconds=3_600.0):
        wait_until(lambda: published(kafka) == 40)
        learnt, turned = done(), turns[0]
        wait_until(lambda: turns[0] >= turned + 4)

        assert done() == learnt
    assert learnt["examples"] == done_before["examples"] + 40


def published(kafka: KafkaSettings) -> int | None:
    """Examples that the newest version has learnt."""
    newest = newest_announcement(kafka).announcement
    return newest.examples_trained if newest is not None else None


def done() -> dict[str, float]:
    """Steps taken, examples learnt and versions published in this process so far."""
    return {
        "steps": value("sasrec_micro_batch_examples_count"),
        "examples": value("sasrec_micro_batch_examples_sum"),
        "deltas": value("sasrec_versions_published_total", kind="delta"),
        "full": value("sasrec_versions_published_total", kind="full"),
    }


def batches_up_to(size: int) -> float:
    """Micro-batches of at most so many examples."""
    return value("sasrec_micro_batch_examples_bucket", le=f"{size}.0")


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
