"""The trainer on the real broker: resumed, promoted, fed with rubbish, refused, killed."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from model.checkpoint import BrokenCheckpointError, newest_checkpoint, read_manifest, read_serving, verify
from model.store import Place
from stream.clients import consumer, producer
from stream.dead_letters import EXCEPTION
from stream.examples import ClickExample, ExampleId, decode_example
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, EXAMPLES, MODELS
from tests.trainer.clicks import click, clicks, in_batches, send, send_with
from tests.trainer.doomed_trainer import MODEL, TRAINER
from tests.trainer.running import running, trained
from trainer.cut import Cut
from trainer.examples import newest_announcement, partitions_of
from trainer.exposure import Exposure
from trainer.learner import Learner
from trainer.lock import LOCK_FILE
from trainer.loop import run_trainer
from trainer.publish import announce, new_lineage, write
from trainer.state import read_cut
from trainer.weights import Weigher, Weights

pytestmark = pytest.mark.broker

Wait = Callable[[Callable[[], Any]], Any]


def spikes_beyond(count: float) -> Callable[[], bool]:
    return lambda: counted("sasrec_loss_spikes_total") > count


def test_what_is_sent_is_learnt_published_and_announced(kafka: KafkaSettings, tmp_path: Path, wait_until: Wait) -> None:
    send(kafka, clicks(200, partitions=2))

    with running(kafka, tmp_path) as published:
        wait_until(trained(published, 200))

    announcement = newest_announcement(kafka).announcement
    assert announcement == published[-1]
    assert announcement.examples_trained == 200
    found = newest_checkpoint(tmp_path / announcement.lineage, on_broken=refuse)
    assert found is not None
    assert (str(found.path), found.manifest_sha256) == (announcement.path, announcement.manifest_sha256)


def test_a_restarted_trainer_goes_on_where_the_last_one_stopped(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    examples = clicks(300, partitions=2)
    send(kafka, examples[:100])
    with running(kafka, tmp_path) as first:
        wait_until(trained(first, 100))
    send(kafka, examples[60:])

    with running(kafka, tmp_path) as second:
        wait_until(trained(second, 300))

    assert second[-1].examples_trained == 300
    assert second[-1].lineage == first[-1].lineage
    assert second[0].version == first[-1].version + 1


def test_a_broken_checkpoint_is_passed_over_and_what_it_had_learnt_is_learnt_again(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    examples = clicks(200, partitions=2)
    with running(kafka, tmp_path) as first:
        send(kafka, examples[:100])
        wait_until(trained(first, 100))
        send(kafka, examples[100:])
        wait_until(trained(first, 200))
    (Path(first[-1].path) / "trainer.msgpack").write_bytes(b"torn")

    with running(kafka, tmp_path) as second:
        wait_until(trained(second, 200))

    assert second[-1].examples_trained == 200
    assert second[-1].version > first[-1].version


def test_a_promoted_lineage_is_taken_over_with_its_own_cut(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    """The promoted model has learnt the first 80 of partition 0 and is sent everything behind them."""
    examples = clicks(300, partitions=2)
    learnt = [example for example in examples if example.id.partition == 0][:80]
    challenger = Learner(MODEL, TRAINER)
    for batch in in_batches(learnt, 20):
        challenger.learn(batch)
    cut = Cut(offsets={0: 50}, marks={"clicks": {0: (79, 0)}})
    with running(kafka, tmp_path) as published, producer(kafka) as sender:
        send(kafka, examples)
        wait_until(trained(published, 300))

        lineage = new_lineage()
        above = published[-1].generation + 1
        announce(sender, kafka, write(challenger, cut, root=tmp_path, lineage=lineage, version=1, generation=above))
        wait_until(lambda: published[-1].lineage == lineage and published[-1].examples_trained >= 300)

    assert published[-1].examples_trained == 300
    assert published[-1].version > 1


def test_what_cannot_be_read_goes_to_the_dead_letters_and_the_rest_is_learnt(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    with producer(kafka) as sender:
        for rubbish in (b"\x00rubbish", b"", None):
            sender.send(kafka.topic(EXAMPLES), key=b"u", value=rubbish, partition=1)
        send_with(sender, kafka, clicks(50, partitions=2))

    with running(kafka, tmp_path) as published:
        wait_until(trained(published, 50))

    letters = dead_letters(kafka)
    assert [letter.value for letter in letters] == [b"\x00rubbish", b"", None]
    assert {dict(letter.headers)[EXCEPTION] for letter in letters} == {b"malformed"}
    assert {letter.partition for letter in letters} == {1}


class PoisonedWeigher(Weigher):
    """Gives one user's clicks weights under which the loss explodes, but stays finite."""

    def weigh(self, clicks: Sequence[ClickExample], *, exposure: Exposure) -> Weights:
        weights = super().weigh(clicks, exposure=exposure)
        poisoned_N = np.array([click.user_id == "poison" for click in clicks], dtype=np.bool_)
        return weights._replace(weight_N=np.where(poisoned_N, 1e6, weights.weight_N))


def test_repeated_spikes_lead_back_to_the_last_good_cut_and_the_poison_is_set_aside(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.state.Weigher", PoisonedWeigher)
    monkeypatch.setattr("trainer.learner.Weigher", PoisonedWeigher)
    examples = clicks(2_800, partitions=2)
    before = counted("sasrec_rollbacks_total", reason="divergence")
    with running(kafka, tmp_path) as published:
        for batch in in_batches(examples[:2_400], 200):
            send(kafka, batch)
        wait_until(trained(published, 2_400))
        good = published[-1]
        poison = [
            click(ExampleId("impressions", 0, place, 0), "poison", ["item-1"], f"item-{place % 30}")
            for place in range(30)
        ]
        for batch in in_batches(poison, 10):
            spiked = spikes_beyond(counted("sasrec_loss_spikes_total"))
            send(kafka, batch)
            wait_until(spiked)
        wait_until(lambda: len(dead_letters(kafka)) >= len(poison))
        send(kafka, examples[2_400:])
        wait_until(trained(published, 2_800))

    letters = dead_letters(kafka)
    assert {decode_example(letter.value).user_id for letter in letters} == {"poison"}
    assert {dict(letter.headers)[EXCEPTION] for letter in letters} == {b"spike"}
    assert published[-1].examples_trained == 2_800
    assert published[-1].lineage == good.lineage
    assert counted("sasrec_rollbacks_total", reason="divergence") == before + 1


def test_a_second_trainer_in_the_same_folder_is_refused(kafka: KafkaSettings, tmp_path: Path, wait_until: Wait) -> None:
    send(kafka, clicks(20))

    with running(kafka, tmp_path) as published:
        wait_until(trained(published, 20))

        with pytest.raises(ValueError, match=r"another trainer \(pid \d+\).*state\.directory"):
            run_trainer(kafka, MODEL, TRAINER, checkpoints=tmp_path, stop=threading.Event())


def test_a_promotion_survives_a_trainer_that_announces_its_own_lineage_after_it_and_dies(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    with running(kafka, tmp_path) as published:
        send(kafka, clicks(100, partitions=2))
        wait_until(trained(published, 100))
    older = published[-1]
    lineage, learner = new_lineage(), Learner(MODEL, TRAINER)
    learner.learn(clicks(100, partitions=2))
    cut = Cut(offsets={0: ends(clicks(100, partitions=2), 0), 1: ends(clicks(100, partitions=2), 1)})
    with producer(kafka) as sender:
        promoted = announce(sender, kafka, write(learner, cut, root=tmp_path, lineage=lineage, version=1), generation=2)
        late = msgspec.structs.replace(older, version=older.version + 1)
        sender.send(kafka.topic(MODELS), key=late.key.encode(), value=msgspec.json.encode(late))
        sender.flush()

    assert newest_announcement(kafka).announcement == promoted
    with running(kafka, tmp_path) as again:
        send(kafka, clicks(150, partitions=2)[100:])
        wait_until(lambda: again and again[-1].examples_trained >= 150)
    assert (again[-1].lineage, again[-1].generation, again[-1].examples_trained) == (lineage, 2, 150)


def test_what_is_made_live_again_is_where_the_trainer_goes_on_and_so_does_the_next_one(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    examples = clicks(200, partitions=2)
    with running(kafka, tmp_path) as published, producer(kafka) as sender:
        send(kafka, examples[:100])
        wait_until(trained(published, 100))
        first = read_manifest(tmp_path / published[0].lineage / "00000001")
        send(kafka, examples[100:])
        wait_until(trained(published, 200))
        back = verify(tmp_path / first.lineage / "00000001")
        announce(sender, kafka, back, generation=published[-1].generation + 1)
        wait_until(lambda: published[-1].generation == 2 and published[-1].examples_trained >= 200)

    assert published[-1].examples_trained == 200
    assert published[-1].lineage == first.lineage
    assert newest_announcement(kafka).announcement == published[-1]


def test_killed_at_random_instants_it_loses_nothing_and_learns_nothing_twice(
    kafka: KafkaSettings, tmp_path: Path, wait_until: Wait
) -> None:
    """Each item was clicked a known number of times; the surviving model has counted each of them once."""
    examples = clicks(1_200, partitions=2)
    dice = random.Random(7)
    for batch in in_batches(examples, 300):
        with doomed(kafka, tmp_path) as process:
            wait_until(lambda: works_in(tmp_path) == process.pid)
            send(kafka, batch)
            time.sleep(0.3 * dice.random())  # reason: the instant of the kill is the test's random input
            process.kill()

    with running(kafka, tmp_path) as published:
        wait_until(trained(published, 1_200))

    found = newest_checkpoint(tmp_path / published[-1].lineage, on_broken=refuse)
    assert found is not None
    assert found.manifest.examples_trained == 1_200
    assert counted_clicks(found.path) == Counter(example.item_id for example in examples)
    assert read_cut(found.path).offsets == {0: ends(examples, 0), 1: ends(examples, 1)}


@contextmanager
def doomed(kafka: KafkaSettings, checkpoints: Path) -> Iterator[subprocess.Popen[bytes]]:
    module = "tests.trainer.doomed_trainer"
    with subprocess.Popen(
        [sys.executable, "-m", module, kafka.bootstrap_servers, kafka.topic_prefix, str(checkpoints)]
    ) as process:
        yield process
        process.wait()


def refuse(error: BrokenCheckpointError) -> None:
    raise error


def works_in(checkpoints: Path) -> int | None:
    """The process that holds the folder."""
    lock = checkpoints / LOCK_FILE
    return int(lock.read_text() or 0) if lock.exists() else None


def dead_letters(kafka: KafkaSettings) -> list[Any]:
    with consumer(kafka) as reader:
        partitions = partitions_of(reader, kafka.topic(EXAMPLES + DEAD_LETTER_SUFFIX))
        reader.assign(partitions)
        reader.seek_to_beginning(*partitions)
        ends = reader.end_offsets(partitions)
        found: list[Any] = []
        while any(reader.position(partition) < end for partition, end in ends.items()):
            found += (record for records in reader.poll(timeout_ms=200).values() for record in records)
    return found


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def counted_clicks(checkpoint: Place) -> Counter[str]:
    catalogue = read_serving(checkpoint).catalogue
    counts = catalogue.click_counts()
    return Counter({catalogue.item_of(int(row)): int(counts[row]) for row in catalogue.live_rows()})


def ends(examples: Sequence[ClickExample], partition: int) -> int:
    return sum(example.id.partition == partition for example in examples)
