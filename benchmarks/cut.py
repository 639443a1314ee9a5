"""Is the cut exact? A trainer is killed with -9 again and again, and must end as one that nobody disturbed.

Examples, a few of them rubbish, come on a topic. A trainer is killed: between every two steps of its numbered protocol,
inside a write, around the rename, and at random instants; its disk fills up; its newest checkpoint is truncated,
altered, or loses a file; a second trainer is started beside it. In the end every example must have been learnt exactly
once, and every file of the last checkpoint must be what a learner comes to that nobody disturbed, in one go over the
micro-batches that the checkpoints recorded.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import Baseline, arguments, equal, explained, report, row
from benchmarks.deaths import POINTS, Point, arm
from deploy.local.kafka import LocalKafka
from model.checkpoint import (
    CATALOGUE,
    MANIFEST,
    MODEL,
    TRAINER,
    TRAINER_TENSORS,
    BrokenCheckpointError,
    WrittenCheckpoint,
    newest_checkpoint,
    read_serving,
    verify,
)
from model.settings import ModelSettings
from stream.admin import create_topics
from stream.clients import producer
from stream.events import ModelAnnouncement
from stream.examples import ClickExample, ExampleId, encode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES
from trainer.cut import Cut, fresh
from trainer.learner import Learner
from trainer.lock import LOCK_FILE
from trainer.loop import run_trainer
from trainer.rerun import digests, micro_batches
from trainer.settings import TrainerSettings
from trainer.state import Resumed, read_boundaries, read_cut, read_guard

NETWORK = ModelSettings(max_length=16, units=32, blocks=1)
BATCH = 64
SETTINGS = TrainerSettings(
    min_batch=BATCH,
    max_batch=BATCH,
    catch_up_batch=BATCH,
    max_wait_seconds=60.0,
    publish_seconds=0.02,
    full_seconds=0.06,
    negatives=64,
    keep_checkpoints=100_000,
)
"""Every full checkpoint stays, so that all recorded micro-batches can be learnt again."""
KILLS, QUICK_KILLS = 100, 25
BATCHES_PER_KILL = 10
USERS, ITEMS, CONTEXT = 60, 300, 12
RUBBISH_EVERY = 150
LONGEST_LIFE_SECONDS = 5.0
SMALL_DISK_BYTES = 6_000
REFUSED, FAILED = 3, 4


class Stream(NamedTuple):
    """What lies on the topic."""

    examples: Sequence[ClickExample]
    rubbish: int


class Ended(NamedTuple):
    """What one trainer left behind."""

    examples_trained: int
    clicks: Counter[str]
    files: dict[str, str]
    """SHA-256 of each: weights, optimiser, catalogue, and one with cut, marks, random state, replay and windows."""


class Tally(NamedTuple):
    """How often what was done to the trainer."""

    planned: Counter[str]
    done: Counter[str]
    restart_seconds: list[float]


def made(count: int, *, seed: int = 1) -> Stream:
    """Clicks of users who go through the items each at a step of their own."""
    dice = random.Random(seed)
    histories: list[tuple[str, ...]] = [()] * USERS
    examples = []
    for offset in range(count):
        user = dice.randrange(USERS)
        item_id = f"item-{(len(histories[user]) * (1 + user % 7) + dice.randrange(3)) % ITEMS}"
        identity = ExampleId("clicks", 0, offset, 0)
        at_ms = 1_700_000_000_000 + offset
        examples.append(ClickExample(identity, f"user-{user}", histories[user][-CONTEXT:], item_id, at_ms, at_ms, None))
        histories[user] = (*histories[user], item_id)
    return Stream(examples, count // RUBBISH_EVERY)


def send(kafka: KafkaSettings, stream: Stream, *, first: int, last: int) -> None:
    """Examples in order, rubbish between them, and some of them twice, as after a crash of the stream worker."""
    with producer(kafka) as sender:
        for nth, example in enumerate(stream.examples[first:last], start=first):
            sender.send(kafka.topic(EXAMPLES), key=b"u", value=encode_example(example), partition=0)
            if nth % RUBBISH_EVERY == RUBBISH_EVERY - 1:
                sender.send(kafka.topic(EXAMPLES), key=b"u", value=b"\x00rubbish", partition=0)
                for again in stream.examples[nth - 2 : nth + 1]:
                    sender.send(kafka.topic(EXAMPLES), key=b"u", value=encode_example(again), partition=0)
        sender.flush()


def live(kafka: KafkaSettings, checkpoints: Path, *, until: int) -> None:
    """One trainer's life in this process, until it has published so many examples."""
    stop = threading.Event()

    def published(announcement: ModelAnnouncement) -> None:
        if announcement.examples_trained >= until:
            stop.set()

    run_trainer(kafka, NETWORK, SETTINGS, checkpoints=checkpoints, stop=stop, on_published=published)


class Lives:
    """Trainers in forked processes: everything is imported already, so that a restart costs what resuming costs."""

    def __init__(self, kafka: KafkaSettings, checkpoints: Path, *, until: int, log: Path) -> None:
        self._kafka, self._checkpoints, self._until, self._log = kafka, checkpoints, until, log

    def fork(self, *, point: Point | None = None, nth: int = 1, disk_bytes: int | None = None) -> int:
        """The process id of a new trainer that will end at the point, or with a disk on which nothing fits."""
        child = os.fork()
        if child:
            return child
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            if point is not None:
                arm(point, nth=nth)
            if disk_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
            live(self._kafka, self._checkpoints, until=self._until)
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(REFUSED)
        except BaseException as error:  # noqa: BLE001 - a process begins here
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(FAILED)
        os._exit(0)

    def is_at_work(self, child: int) -> bool:
        """Whether it holds the folder."""
        lock = self._checkpoints / LOCK_FILE
        return lock.exists() and lock.read_text() == str(child)


def ended(child: int, *, within_seconds: float) -> int | None:
    """The status of a process that ends by itself in time; None where it lives on."""
    ends_at = time.monotonic() + within_seconds
    while time.monotonic() < ends_at:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.005)
    return None


def killed(child: int) -> None:
    """Ends it with `kill -9`."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def torment(lives: Lives, checkpoints: Path, number: int, tally: Tally, dice: random.Random) -> None:
    """One kill, and before some of them what else may happen."""
    match number % 10:
        case 3:
            _damage(checkpoints, ("truncated", "a bit flipped", "missing")[number // 10 % 3], tally, dice)
        case 6:
            _small_disk(lives, tally)
        case 9:
            _two_at_once(lives, tally)
    if number % 5 == 4:
        _random_instant(lives, tally, dice)
    else:
        _at_a_point(lives, POINTS[-1 - (number - number // 5) % len(POINTS)], tally, dice)


def _at_a_point(lives: Lives, point: Point, tally: Tally, dice: random.Random) -> None:
    began = time.monotonic()
    child = lives.fork(point=point, nth=1 if point.step.startswith("0") else 1 + dice.randrange(3))
    tally.planned[point.step] += 1
    _wait_until_at_work(lives, child)
    tally.restart_seconds.append(time.monotonic() - began)
    status = ended(child, within_seconds=LONGEST_LIFE_SECONDS)
    if status is None:
        killed(child)
        tally.done["a random instant (the point was not reached)"] += 1
    elif os.WIFSIGNALED(status):
        tally.done[point.step] += 1
    else:
        tally.done[f"ended by itself, status {os.waitstatus_to_exitcode(status)}"] += 1


def _random_instant(lives: Lives, tally: Tally, dice: random.Random) -> None:
    child = lives.fork()
    tally.planned["at a random instant"] += 1
    _wait_until_at_work(lives, child)
    status = ended(child, within_seconds=0.3 * dice.random())
    if status is None:
        killed(child)
        tally.done["at a random instant"] += 1


def _wait_until_at_work(lives: Lives, child: int) -> None:
    ends_at = time.monotonic() + LONGEST_LIFE_SECONDS
    while time.monotonic() < ends_at and not lives.is_at_work(child) and Path(f"/proc/{child}").exists():
        time.sleep(0.002)


def _damage(checkpoints: Path, how: str, tally: Tally, dice: random.Random) -> None:
    """A file of the newest full checkpoint, while no trainer works."""
    folders = [path for path in checkpoints.glob("*/*") if path.is_dir() and path.name.isdigit()]
    if len(folders) < 2:
        return
    newest = max(folders, key=lambda path: (path.parent.name, path.name))
    victim = newest / dice.choice([MODEL, TRAINER_TENSORS, CATALOGUE, TRAINER, MANIFEST])
    content = bytearray(victim.read_bytes())
    if how == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        victim.unlink()
    else:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        victim.write_bytes(content)
    tally.planned[f"newest checkpoint: a file {how}"] += 1
    tally.done[f"newest checkpoint: a file {how}"] += 1


def _small_disk(lives: Lives, tally: Tally) -> None:
    """No file may grow beyond a few bytes (RLIMIT_FSIZE): every write of a checkpoint fails in its middle."""
    child = lives.fork(disk_bytes=SMALL_DISK_BYTES)
    tally.planned["disk full, then kill -9"] += 1
    _wait_until_at_work(lives, child)
    if ended(child, within_seconds=0.5) is None:
        killed(child)
    tally.done["disk full, then kill -9"] += 1


def _two_at_once(lives: Lives, tally: Tally) -> None:
    """The one that comes second must be refused; both end."""
    first = lives.fork()
    _wait_until_at_work(lives, first)
    second = lives.fork()
    tally.planned["a second trainer is refused"] += 1
    status = ended(second, within_seconds=LONGEST_LIFE_SECONDS)
    if status is None:
        killed(second)
    elif os.waitstatus_to_exitcode(status) == REFUSED:
        tally.done["a second trainer is refused"] += 1
    if ended(first, within_seconds=0.0) is None:
        killed(first)


def newest_of(checkpoints: Path) -> WrittenCheckpoint:
    """The newest whole checkpoint of all lineages that has learnt most."""
    found = [newest_checkpoint(folder, on_broken=lambda _: None) for folder in checkpoints.iterdir() if folder.is_dir()]
    return max((one for one in found if one is not None), key=lambda one: one.manifest.examples_trained)


def left_behind(newest: WrittenCheckpoint) -> Ended:
    """What a checkpoint holds."""
    serving = read_serving(newest.path)
    counts = serving.catalogue.click_counts()
    return Ended(
        newest.manifest.examples_trained,
        Counter({serving.catalogue.item_of(int(row)): int(counts[row]) for row in serving.catalogue.live_rows()}),
        {name: digest.sha256 for name, digest in newest.manifest.files.items()},
    )


def undisturbed(kafka: KafkaSettings, newest: WrittenCheckpoint) -> Ended:
    """A learner that nobody kills, from the first example on, in the micro-batches that the checkpoints recorded."""
    learner, cut = Learner(NETWORK, SETTINGS), Cut()
    for boundary, examples in micro_batches(kafka, cut, recorded(newest)):
        new = fresh(examples, cut.marks)
        cut = Cut(offsets=boundary, marks=new.marks)
        learner.learn(new.examples)
    cut = Cut(offsets=read_cut(newest.path).offsets, marks=cut.marks)
    counts, catalogue = learner.catalogue.click_counts(), learner.catalogue
    return Ended(
        learner.examples_trained,
        Counter({catalogue.item_of(int(row)): int(counts[row]) for row in catalogue.live_rows()}),
        digests(Resumed(learner, cut), read_boundaries(newest.path)),
    )


def recorded(newest: WrittenCheckpoint) -> list[dict[int, int]]:
    """Every micro-batch behind a checkpoint, from the checkpoints before it: each resumed from the newest whole one."""
    assert isinstance(newest.path, Path)
    boundaries: list[dict[int, int]] = []
    for path in sorted(path for path in newest.path.parent.iterdir() if path.is_dir() and path.name.isdigit()):
        try:
            verify(path)
        except BrokenCheckpointError:
            continue
        boundaries += read_boundaries(path)
        assert read_guard(path).batches == len(boundaries), f"{path.name} does not follow on the one before it"
    return boundaries


def run(kills: int, folder: Path) -> tuple[Tally, Ended, Ended, Stream]:
    """The tormented trainer, then the undisturbed learner."""
    stream = made(kills * BATCHES_PER_KILL * BATCH)
    broker = LocalKafka(folder / "kafka", port=0)
    broker.start()
    try:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_prefix="cut.", partitions=1)
        create_topics(kafka)
        count, checkpoints = len(stream.examples), folder / "tormented"
        lives = Lives(kafka, checkpoints, until=count, log=folder / "tormented.log")
        tally = Tally(Counter(), Counter(), [])
        dice, shown, per_kill = random.Random(7), Console(stderr=True), BATCHES_PER_KILL * BATCH
        for number in range(kills):
            send(kafka, stream, first=number * per_kill, last=(number + 1) * per_kill)
            torment(lives, checkpoints, number, tally, dice)
            if number % 10 == 9:
                shown.print(f"{number + 1} kills")
        if newest_of(checkpoints).manifest.examples_trained < count:
            os.waitpid(lives.fork(), 0)
        newest = newest_of(checkpoints)
        return tally, undisturbed(kafka, newest), left_behind(newest), stream
    finally:
        broker.stop()


def main() -> None:
    """Torments, compares, reports."""
    parser = arguments("A trainer is killed again and again, and ends as one that nobody disturbed.")
    parser.add_argument("--kills", type=int, help=f"how often (default {KILLS}, quick {QUICK_KILLS})")
    options = parser.parse_args()
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory(prefix="cut-") as name:
        tally, calm, tormented, stream = run(kills, Path(name))
    _print(tally)
    truth = Counter(example.item_id for example in stream.examples)
    same = sum(digest == calm.files.get(name) for name, digest in tormented.files.items())
    restarts = sorted(tally.restart_seconds)
    dead = sum(count for what, count in tally.done.items() if "newest" not in what and "refused" not in what)
    report(
        "cut",
        [
            row("trainers killed with -9", dead, unit=""),
            equal(
                "examples learnt",
                tormented.examples_trained,
                Baseline("on the topic, once each", len(stream.examples)),
            ),
            equal(
                "items whose clicks were counted exactly",
                _agreeing(tormented.clicks, truth),
                Baseline("items", len(truth)),
            ),
            equal(
                "files equal to the undisturbed trainer's, to the byte",
                same,
                Baseline("all of them", len(tormented.files)),
            ),
            row("from the fork to the folder's lock, median", restarts[len(restarts) // 2], unit="s"),
        ],
    )


def _agreeing(counted: Counter[str], truth: Counter[str]) -> int:
    return sum(counted[item_id] == count for item_id, count in truth.items())


def _print(tally: Tally) -> None:
    table = Table(title="what was done to the trainer")
    for heading in ("where", "planned", "done"):
        table.add_column(heading, justify="left" if heading == "where" else "right")
    for what in sorted(tally.planned.keys() | tally.done.keys()):
        table.add_row(what, str(tally.planned[what]), str(tally.done[what]))
    Console(width=100).print(table)


if __name__ == "__main__":
    explained(main)
