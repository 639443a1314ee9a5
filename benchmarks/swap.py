"""Does anybody notice when the model is swapped, and what does a swap cost on the wire?

    .venv/bin/python -m benchmarks.swap FILE [--quick] [--bytes] [--limit N]

FILE is a log (MovieLens, KuaiRand, any csv or parquet). A trainer learns its beginning and publishes versions, which
are kept. Then a scoring worker, a process of its own on a real Kafka, answers requests of known users at a steady rate
while one version after another is announced, every second: deltas, and one full checkpoint among them. A request counts
as `during` a swap when it was on its way within a quarter of a second after an announcement. (Not until the first slate
of the new version: such a window is longer whenever the machine is busy with something else, and would find that slow.)

Afterwards slates are held against the versions: the scores in one must be those of the version that it names. Last,
deltas of the chain are torn, flipped in one bit and removed.

With `--bytes`, something else: the bytes of a delta against those of a full checkpoint, along the whole log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import torch
from kafka import TopicPartition

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.recorded import Recorder, Sizes, recorder
from deploy.local.kafka import LocalKafka
from deploy.replay.formats import load_log
from deploy.settings import environment_variable
from model.checkpoint import ServingModel
from stream.admin import create_topics
from stream.clients import consumer, producer
from stream.events import ModelAnnouncement, Recommendation, Request
from stream.sequences import UserState, encode_state, times_of
from stream.settings import KafkaSettings
from stream.topics import MODELS, RECOMMENDATIONS, REQUESTS, SEQUENCES
from trainer.live import read_live

USERS = 1_000
PER_VERSION = 512
"""Clicks learnt between two versions: a second at 500 a second."""
QUIET_SECONDS = 5.0
ANSWER_SECONDS = 60.0
CHECKED_SLATES = 400
DURING_SECONDS = 0.25
TOLERANCE = 1e-4


class Size(NamedTuple):
    """How much of everything."""

    learnt: int
    swaps: int
    rate: int
    bytes_at: tuple[int, ...]


FULL = Size(learnt=50_000, swaps=60, rate=200, bytes_at=(10_000, 30_000, 100_000, 300_000, 990_000))
QUICK = Size(learnt=6_000, swaps=12, rate=100, bytes_at=(10_000,))


class Chain(NamedTuple):
    """What is announced."""

    versions: list[ModelAnnouncement]
    harmed: list[tuple[str, list[ModelAnnouncement], ModelAnnouncement]]
    """Kind of harm, the deltas from the harmed one on, and the full checkpoint after them."""
    users: dict[str, tuple[str, ...]]


class Answer(NamedTuple):
    """A request and its slate; times by this process's clock."""

    sent_at: float
    came_at: float
    slate: Recommendation


def main() -> None:
    """Records, serves, reports."""
    parser = arguments("Swaps under load, and the bytes of a delta.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--bytes", action="store_true", help="the bytes of deltas along the log, and nothing else")
    parser.add_argument("--limit", type=int, help="rows of the log, in the order of time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    rows = load_log(options.file).rows.slice(0, options.limit)
    with tempfile.TemporaryDirectory(prefix="swap-") as folder:
        if options.bytes:
            report("swap, bytes", list(sizes(along(rows, Path(folder), size))))
            return
        chain = record(rows, Path(folder) / "checkpoints", size)
        with serving(Path(folder)) as kafka, contextlib.closing(Load(kafka, chain.users, size.rate)) as load:
            report("swap", [*swaps(load, chain), *harms(load, chain)])


def record(rows: pa.Table, root: Path, size: Size) -> Chain:
    """Versions of the beginning of a log."""
    with recorder(rows, root) as trainer:
        trainer.learn(size.learnt)
        versions = [trainer.publish()]
        for number in range(size.swaps):
            trainer.learn(PER_VERSION)
            versions.append(trainer.publish(full=number == size.swaps // 2))
        harmed = [(kind, *_harmed(trainer, kind)) for kind in HARMS]
        return Chain(versions, harmed, _users(rows.slice(0, trainer.clicks)))


def along(rows: pa.Table, root: Path, size: Size) -> Iterator[Sizes]:
    """The sizes of a version now and then along the log."""
    with recorder(rows, root) as trainer:
        for at in (at for at in size.bytes_at if at <= rows.num_rows):
            trainer.learn(at - trainer.clicks - PER_VERSION)
            trainer.publish()
            measured = _sizes(trainer)
            print(measured, file=sys.stderr, flush=True)
            yield measured


def _sizes(trainer: Recorder) -> Sizes:
    steps = trainer.learner.optimiser.steps
    trainer.learn(PER_VERSION)
    changed = trainer.learner.optimiser.rows_changed_since(steps, rows=trainer.learner.catalogue.size)
    return trainer.sizes(trainer.publish(), changed_rows=len(changed))


def _harmed(trainer: Recorder, kind: str) -> tuple[list[ModelAnnouncement], ModelAnnouncement]:
    """A delta that is harmed and two good ones after it, then a full checkpoint."""
    deltas = []
    for _ in range(3):
        trainer.learn(PER_VERSION)
        deltas.append(trainer.publish())
    path = Path(deltas[0].path)
    raw = path.read_bytes()
    path.unlink()
    HARMS[kind](path, raw)
    trainer.learn(PER_VERSION)
    return deltas, trainer.publish(full=True)


def _flip(path: Path, raw: bytes) -> None:
    path.write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])


HARMS: dict[str, Callable[[Path, bytes], object]] = {
    "torn": lambda path, raw: path.write_bytes(raw[: len(raw) // 2]),
    "bit-flipped": _flip,
    "missing": lambda path, raw: None,  # noqa: ARG005 - it stays away
}


def _users(rows: pa.Table) -> dict[str, tuple[str, ...]]:
    """The last users of the log and what they had, as far as a sequence keeps it."""
    histories: dict[str, list[str]] = {}
    for user_id, item_id in zip(rows["user_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True):
        histories.setdefault(user_id, []).append(item_id)
    return {user_id: tuple(items[-100:]) for user_id, items in list(histories.items())[-USERS:]}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[KafkaSettings]:
    """A Kafka and a scoring worker on it."""
    broker = LocalKafka(folder / "kafka", port=0)
    broker.start()
    kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_prefix="swap.")
    create_topics(kafka)
    variables = {
        environment_variable("kafka.bootstrap_servers"): kafka.bootstrap_servers,
        environment_variable("kafka.topic_prefix"): kafka.topic_prefix,
        environment_variable("state.directory"): str(folder / "state"),
    }
    with (folder / "scoring.log").open("wb") as log:
        command = [sys.executable, "-m", "deploy.cli", "run", "scoring"]
        worker = subprocess.Popen(command, env=os.environ | variables, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        yield kafka
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()
        broker.stop()


class Load:
    """Requests at a steady rate from a thread of its own, and the slates that come back."""

    def __init__(self, kafka: KafkaSettings, users: dict[str, tuple[str, ...]], rate: int) -> None:
        self._kafka = kafka
        self._users = list(users)
        self._rate = rate
        self._producer = producer(kafka, linger_ms=0)
        self._reader = consumer(kafka)
        topic = kafka.topic(RECOMMENDATIONS)
        partitions = [TopicPartition(topic, number) for number in range(kafka.partitions)]
        self._reader.assign(partitions)
        self._reader.seek_to_beginning(*partitions)
        for user_id, items in users.items():
            state = UserState(items=items, times=times_of(range(len(items))), clicks_applied=len(items))
            self._producer.send(kafka.topic(SEQUENCES), encode_state(state), key=user_id.encode())
        self._sent: dict[str, float] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._first_at: dict[str | None, float] = {}
        self._stop = threading.Event()
        self._pause = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._read)]
        self._started = False

    def start(self) -> None:
        """From now on requests are sent."""
        self._producer.flush()
        self._started = True
        for thread in self._threads:
            thread.start()

    def announce(self, announcement: ModelAnnouncement) -> float:
        """When the broker had acknowledged it."""
        value = msgspec.json.encode(announcement)
        self._producer.send(self._kafka.topic(MODELS), value, key=announcement.key.encode()).get(timeout=30)
        return time.time()

    def wait_served(self, version: str) -> float:
        """When the first slate of a version came, as soon as there is one."""
        ends_at = time.monotonic() + ANSWER_SECONDS
        while (first := self._first_at.get(version)) is None:
            if time.monotonic() > ends_at:
                raise ValueError(f"no slate of {version} within {ANSWER_SECONDS:.0f} s; see the worker's log")
            time.sleep(0.01)
        return first

    def drained(self) -> tuple[dict[str, float], dict[str, list[Answer]]]:
        """Everything so far, once nothing is on its way any more; sending goes on afterwards."""
        self._pause.set()
        ends_at = time.monotonic() + ANSWER_SECONDS
        while len(self._answers) < len(self._sent) and time.monotonic() < ends_at:
            time.sleep(0.05)
        time.sleep(1.0)  # a second slate of one request would come now
        sent, answers = dict(self._sent), dict(self._answers)
        self._pause.clear()
        return sent, answers

    def close(self) -> None:
        """Ends both threads."""
        self._stop.set()
        for thread in self._threads:
            if self._started:
                thread.join()
        self._producer.close()
        self._reader.close()

    def _send(self) -> None:
        rng = np.random.default_rng(1)
        next_at = time.monotonic()
        number = 0
        while not self._stop.wait(max(0.0, next_at - time.monotonic())):
            next_at += 1.0 / self._rate
            if self._pause.is_set():
                continue
            user_id = self._users[int(rng.integers(len(self._users)))]
            request = Request(event_id=f"page-{number}", user_id=user_id, timestamp_ms=time.time_ns() // 1_000_000)
            self._sent[request.event_id] = time.time()
            self._producer.send(self._kafka.topic(REQUESTS), msgspec.json.encode(request), key=user_id.encode())
            number += 1

    def _read(self) -> None:
        decode = msgspec.json.Decoder(Recommendation).decode
        while not self._stop.is_set():
            for records in self._reader.poll(timeout_ms=100).values():
                now = time.time()
                for record in records:
                    slate = decode(record.value)
                    sent_at = self._sent[slate.request_id]
                    self._first_at.setdefault(slate.model_version, now)
                    self._answers.setdefault(slate.request_id, []).append(Answer(sent_at, now, slate))


def swaps(load: Load, chain: Chain) -> Iterator[Row]:
    """Every version announced a second after the one before."""
    first, *others = chain.versions
    load.announce(first)
    load.start()
    load.wait_served(first.name)
    time.sleep(QUIET_SECONDS)
    began_at = time.time()
    windows = []
    for number, version in enumerate(others):
        time.sleep(max(0.0, began_at + number - time.time()))
        announced_at = load.announce(version)
        windows.append((announced_at, load.wait_served(version.name)))
    time.sleep(1.0)
    sent, answers = load.drained()
    counts = Counter(len(came) for came in answers.values())
    once = [came[0] for came in answers.values() if came[0].sent_at >= began_at]
    swaps_at = np.array([announced_at for announced_at, _ in windows])
    during = np.array([_milliseconds(one) for one in once if _overlaps(one, swaps_at)])
    between = np.array([_milliseconds(one) for one in once if not _overlaps(one, swaps_at)])
    yield row("swaps", len(windows), unit="")
    yield row(
        "requests answered exactly once",
        counts[1],
        unit="",
        baseline=Baseline("requests sent", len(sent)),
        goal=Goal("exactly", 1.0),
    )
    wrong, checked = check_scores([came[0].slate for came in answers.values()], chain)
    yield row("slates whose scores are not those of the version they name", wrong, unit=f"of {checked}", goal=_none())
    for one in sorted(once, key=_milliseconds)[-10:]:
        last = int(np.searchsorted(swaps_at, one.sent_at)) - 1
        since = one.sent_at - swaps_at[last]
        print(f"slow: {_milliseconds(one):.0f} ms, sent {since:.3f} s after swap {last + 1}", file=sys.stderr)
    taken = np.array([served - announced for announced, served in windows]) * 1_000
    yield row("announced -> first slate of it, p50", float(np.quantile(taken, 0.5)), unit="ms")
    yield row("announced -> first slate of it, p99", float(np.quantile(taken, 0.99)), unit="ms")
    for share in (0.5, 0.95, 0.99):
        yield row(
            f"request -> slate during swaps ({len(during):,}), p{share * 100:.0f}",
            float(np.quantile(during, share)),
            unit="ms",
            baseline=Baseline(f"between them ({len(between):,})", float(np.quantile(between, share))),
            goal=Goal("at most", 1.2) if share == 0.99 else None,
        )


def _milliseconds(one: Answer) -> float:
    return (one.came_at - one.sent_at) * 1_000


def _overlaps(one: Answer, swaps_at: np.ndarray) -> bool:
    return bool(((one.sent_at <= swaps_at + DURING_SECONDS) & (one.came_at >= swaps_at)).any())


def _none() -> Goal:
    return Goal("exactly", 0.0, of="ours")


def check_scores(slates: Sequence[Recommendation], chain: Chain) -> tuple[int, int]:
    """How many slates hold another score than their version gives, of some that are looked at."""
    every = max(1, len(slates) // CHECKED_SLATES)
    by_version: dict[str | None, list[Recommendation]] = {}
    for slate in slates[::every]:
        by_version.setdefault(slate.model_version, []).append(slate)
    known = {announcement.name: announcement for announcement in chain.versions}
    wrong = 0
    for version, of_version in by_version.items():
        serving_model = read_live(known[version or ""]).serving
        wrong += sum(not _is_of(slate, serving_model, chain.users[slate.user_id]) for slate in of_version)
    return wrong, sum(map(len, by_version.values()))


def _is_of(slate: Recommendation, serving_model: ServingModel, items: tuple[str, ...]) -> bool:
    rows_T = serving_model.catalogue.rows_of(items)
    rows_T = rows_T[rows_T != 0][-serving_model.model.settings.max_length :]
    user_D = serving_model.model.encode_last(torch.from_numpy(rows_T)[None])[0]
    scored = [item for item in slate.items if item.score is not None]
    row_K = torch.from_numpy(serving_model.catalogue.rows_of(item.item_id for item in scored))
    given_K = torch.tensor([item.score for item in scored])
    return bool(((serving_model.model.item_RD[row_K] @ user_D - given_K).abs() <= TOLERANCE).all())


def harms(load: Load, chain: Chain) -> Iterator[Row]:
    """After each kind of harm: what is served until the next full checkpoint, and that this one is served."""
    for kind, deltas, full in chain.harmed:
        began_at = time.time()
        for delta in deltas:
            load.announce(delta)
            time.sleep(1.0)
        _, answers = load.drained()
        names = {delta.name for delta in deltas}
        wrong = sum(
            one.slate.model_version in names for came in answers.values() for one in came if one.sent_at >= began_at
        )
        announced_at = load.announce(full)
        yield row(f"{kind} delta: slates of it or of what comes after it", wrong, unit="", goal=_none())
        taken = (load.wait_served(full.name) - announced_at) * 1_000
        yield row(f"{kind} delta: next full one announced -> first slate of it", taken, unit="ms")
    sent, answers = load.drained()
    once = sum(len(came) == 1 for came in answers.values())
    yield row("requests answered exactly once, all", once, unit="", baseline=Baseline("requests sent", len(sent)))


def sizes(measured: Iterable[Sizes]) -> Iterator[Row]:
    """Bytes of a full checkpoint over those of a delta, at the same moment."""
    for one in measured:
        at = f"after {one.clicks:,} clicks, {one.items:,} items"
        yield row(f"rows changed by {PER_VERSION} clicks {at}", one.changed_rows, unit="")
        full, delta = one.full / 1e6, Baseline("a delta", one.delta / 1e6)
        yield row(f"full checkpoint {at}", full, unit="MB", baseline=delta, goal=Goal("at least", 13.0))
        rounded = Baseline("a delta in bfloat16", one.rounded / 1e6)
        yield row("the same", full, unit="MB", baseline=rounded, goal=Goal("at least", 13.0))
        yield row("its weights and catalogue alone", one.serving / 1e6, unit="MB", baseline=delta)


if __name__ == "__main__":
    explained(main)
