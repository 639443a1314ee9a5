"""How many events a processor second does the stream worker take, and how long does one event take at low load?

    .venv/bin/python -m benchmarks.stream [FILE ...] [--quick] [--part logs|workers|latency] [--users N]

Every FILE is a log (MovieLens, KuaiRand, any csv or parquet); beside them uniformly random users click, so that hardly
two events of a chunk have a user in common. On each, in one run and on one Kafka: (1) a Faust agent as the
documentation has it, event by event, decoding and one write to a RocksDB table; (2) the stream worker with the whole
join, states, changelog and examples; (3) aiokafka, fetching and decoding alone; (4) kafka-python with the same fold in
memory. Rates are events per processor second of the process that did the work. Then two workers against one, both
there when the events come, and the time of a single event at low load. With `--part` only one of the three.

With `--users N`, something else: N users with 50 clicks each, what their states weigh in `sequences`, on disk and in
the worker's memory, and how long a worker with an empty disk, and one with the states on its disk, takes to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.backlog import fill, reveal
from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.million import recover
from benchmarks.stream_process import PROFILE, Measured
from deploy.local.kafka import LocalKafka
from deploy.replay.events import Message, events, row_id
from deploy.replay.formats import load_log
from stream.admin import create_topics
from stream.clients import consumer
from stream.events import Click
from stream.settings import KafkaSettings
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS, SEQUENCES

Kind = Literal["ours", "faust", "aiokafka", "kafka-python"]
Part = Literal["logs", "workers", "latency"]
PARTS: tuple[Part, ...] = get_args(Part)
PARTITIONS = 4
LOOK_SECONDS = 0.2
RANDOM_USERS = 1_000_000
RANDOM_ITEMS = 20_000
START_MS = 1_700_000_000_000
GARBAGE_SHARE = 0.1
SHARE = 0.4
"""Of a core, that each of two workers gets where the machine has no core for each of them and for the broker."""
SHARED_SECONDS = 0.05
"""In pieces of which a share is given out."""
LOADS = (1, 10, 100)
"""Events a second at which the time of a single one is taken."""


class Sizes(NamedTuple):
    """How many events each kind of worker gets."""

    ours: int
    faust: int
    bare: int
    latency_seconds: float


FULL = Sizes(ours=120_000, faust=12_000, bare=60_000, latency_seconds=15.0)
QUICK = Sizes(ours=60_000, faust=6_000, bare=40_000, latency_seconds=3.0)


class Latency(NamedTuple):
    """From a click's acknowledgement to the moment when a reader of `sequences` has the user's new state."""

    p50_ms: float
    p95_ms: float


def random_clicks(count: int, *, users: int = RANDOM_USERS) -> Iterator[Message]:
    """Clicks of users drawn uniformly, one a millisecond."""
    dice = random.Random(7)
    for number in range(count):
        user, at_ms = f"user-{dice.randrange(users)}", START_MS + number
        item = f"item-{dice.randrange(RANDOM_ITEMS)}"
        click = Click(event_id=row_id(user, item, at_ms), user_id=user, item_id=item, timestamp_ms=at_ms)
        yield Message(CLICKS, user.encode(), msgspec.json.encode(click))


def log_messages(path: Path, count: int) -> Iterator[Message]:
    """The first messages of a log."""
    rows = load_log(path).rows
    return islice((message for event in events(rows[:count]) for message in event.messages), count)


def with_garbage(messages: Iterator[Message]) -> Iterator[Message]:
    """The same, and among ten messages one that nobody can read."""
    dice = random.Random(11)
    for message in messages:
        if dice.random() < GARBAGE_SHARE:
            yield message._replace(value=message.value[:-9])
        else:
            yield message


class Bench:
    """One Kafka for the whole run; every measurement has topics of its own on it."""

    def __init__(self, directory: Path, bootstrap_servers: str) -> None:
        self.directory = directory
        self._bootstrap_servers = bootstrap_servers
        self._count = 0

    def topics(self) -> KafkaSettings:
        """Topics that nobody has written to."""
        self._count += 1
        kafka = KafkaSettings(
            bootstrap_servers=self._bootstrap_servers, topic_prefix=f"bench-{self._count}.", partitions=PARTITIONS
        )
        create_topics(kafka)
        return kafka

    def filled(self, messages: Iterator[Message]) -> KafkaSettings:
        """Topics with a backlog."""
        kafka = self.topics()
        fill(kafka, messages, first_ms=int(time.time() * 1000))
        return kafka

    @contextlib.contextmanager
    def started(
        self,
        kind: Kind,
        kafka: KafkaSettings,
        count: int = 0,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Any]:
        """A worker of a kind as a process of its own."""
        self._count += 1
        command = [sys.executable, "-m", "benchmarks.stream_process", kind, kafka.bootstrap_servers, kafka.topic_prefix]
        command += [str(PARTITIONS), str(directory or self.directory / str(self._count)), str(count)]
        with (self.directory / f"{self._count}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | dict(environment or {})
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def measured(self, kind: Kind, kafka: KafkaSettings, count: int) -> Measured:
        """What a worker says that ends by itself."""
        with self.started(kind, kafka, count) as process:
            return _said(process)

    def ours(self, kafka: KafkaSettings, environment: Mapping[str, str] | None = None) -> Measured:
        """The stream worker, until nothing is left."""
        with self.started("ours", kafka, environment=environment) as process:
            wait_until_finished(kafka)
            process.send_signal(signal.SIGTERM)
            return _said(process)

    def together(self, workers: int, messages: Iterator[Message], *, share: float = 1.0) -> list[Measured]:
        """So many stream workers that are there when the events come, all at once; each has a share of a core."""
        kafka = self.topics()
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(self.started("ours", kafka)) for _ in range(workers)]
            for process in processes:
                _wait_until_ready(process)
            count = reveal(kafka, messages, first_ms=int(time.time() * 1000))
            with throttled(processes, share):
                while committed(kafka) < count:
                    time.sleep(LOOK_SECONDS)
            for process in processes:
                process.send_signal(signal.SIGTERM)
            return list(map(_said, processes))

    def click(self, kafka: KafkaSettings, count: int, users: int) -> None:
        """Sends clicks of so many users and waits until the worker has finished them."""
        fill(kafka, random_clicks(count, users=users), first_ms=int(time.time() * 1000))
        wait_until_finished(kafka)

    def latency(self, per_second: int, seconds: float) -> Latency:
        """The stream worker at low load."""
        kafka = self.topics()
        with self.started("ours", kafka) as process:
            _wait_until_ready(process)
            taken = asyncio.run(_latencies(kafka, per_second, seconds))
        return Latency(statistics.median(taken) * 1000, statistics.quantiles(taken, n=20)[-1] * 1000)


@contextlib.contextmanager
def throttled(processes: Sequence[Any], share: float) -> Iterator[None]:
    """Stops processes by turns, so that each has no more than a share of a core; one after another, not all at once."""
    over = threading.Event()

    def stop_and_go(process: Any, offset: float) -> None:  # noqa: ANN401 - a Popen
        over.wait(offset)
        while not over.is_set():
            process.send_signal(signal.SIGSTOP)
            over.wait(SHARED_SECONDS * (1 - share))
            process.send_signal(signal.SIGCONT)
            over.wait(SHARED_SECONDS * share)

    threads = [
        threading.Thread(target=stop_and_go, args=(process, nth * SHARED_SECONDS / len(processes)))
        for nth, process in enumerate(processes)
        if share < 1.0
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for process in processes:
            process.send_signal(signal.SIGCONT)


def _wait_until_ready(process: Any) -> None:  # noqa: ANN401 - a Popen of text
    while process.stdout.readline() != "ready\n":
        if process.poll() is not None:
            raise ValueError("a worker ended before it was ready; see what it logged")


def _said(process: Any) -> Measured:  # noqa: ANN401 - a Popen of text
    lines = process.stdout.read().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise ValueError("a worker ended without a word; see what it logged")
    return msgspec.json.decode(lines[-1], type=Measured)


def wait_until_finished(kafka: KafkaSettings) -> None:
    """Until the stream worker has committed everything that came in."""
    while not is_finished(kafka):
        time.sleep(LOOK_SECONDS)


def is_finished(kafka: KafkaSettings) -> bool:
    """Whether the stream worker has committed everything that came in."""
    with consumer(kafka, group_id=kafka.group("stream")) as client:
        tps = [
            tp
            for name in (CLICKS, IMPRESSIONS, RECOMMENDATIONS)
            for tp in sorted(_partitions(client, kafka.topic(name)))
        ]
        ends = client.end_offsets(tps)
        return all((client.committed(tp) or 0) >= ends[tp] for tp in tps)


def committed(kafka: KafkaSettings) -> int:
    """How many clicks the stream worker has committed, where nothing but clicks ever stood on their topic before."""
    with consumer(kafka, group_id=kafka.group("stream")) as client:
        return sum(client.committed(tp) or 0 for tp in _partitions(client, kafka.topic(CLICKS)))


def _partitions(client: Any, topic: str) -> list[Any]:  # noqa: ANN401 - a KafkaConsumer
    from kafka import TopicPartition  # noqa: PLC0415 - beside aiokafka's class of that name

    return [TopicPartition(topic, partition) for partition in client.partitions_for_topic(topic)]


async def _latencies(kafka: KafkaSettings, per_second: int, seconds: float) -> list[float]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, acks="all")
    reader = AIOKafkaConsumer(kafka.topic(SEQUENCES), bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    await reader.start()
    came: dict[bytes, float] = {}
    sent: dict[bytes, float] = {}
    count = max(int(per_second * seconds), 8)

    async def read() -> None:
        while len(came) < count:
            for records in (await reader.getmany(timeout_ms=1_000)).values():
                now = time.monotonic()
                for record in records:
                    came.setdefault(record.key, now)

    reading = asyncio.create_task(read())
    for number in range(count):
        await asyncio.sleep(1 / per_second)
        key, at_ms = b"user-%d" % number, int(time.time() * 1000)
        click = Click(event_id=f"e{number}", user_id=key.decode(), item_id="item", timestamp_ms=at_ms)
        await producer.send_and_wait(kafka.topic(CLICKS), key=key, value=msgspec.json.encode(click))
        sent[key] = time.monotonic()
    await asyncio.wait_for(reading, 60)
    await producer.stop()
    await reader.stop()
    # The first ones meet a worker that does everything for the first time.
    return [came[key] - at for key, at in list(sent.items())[count // 8 :]]


def rate(measured: Measured) -> float:
    """Events per processor second."""
    return measured.events / measured.cpu_seconds if measured.cpu_seconds else float("nan")


def wall_rate(measured: Measured) -> float:
    """Events per second."""
    return measured.events / (measured.ended - measured.began) if measured.events else float("nan")


def on_log(bench: Bench, name: str, messages: Any, sizes: Sizes, *, goal: float) -> list[Row]:  # noqa: ANN401 - see below
    """The four workers on one log; `messages(count)` gives its first events."""
    kafka = bench.filled(messages(sizes.ours))
    faust = rate(bench.measured("faust", kafka, sizes.faust))
    bare = rate(bench.measured("aiokafka", kafka, sizes.bare))
    same_fold = rate(bench.measured("kafka-python", kafka, sizes.bare))
    ours = bench.ours(kafka)
    return [
        row(
            f"{name}: events",
            rate(ours),
            unit="1/CPU-s",
            baseline=Baseline("Faust agent, event by event", faust),
            goal=Goal("at least", goal),
        ),
        row(f"{name}: events", rate(ours), unit="1/CPU-s", baseline=Baseline("kafka-python, same fold", same_fold)),
        row(f"{name}: events", rate(ours), unit="1/CPU-s", baseline=Baseline("aiokafka, decode alone", bare)),
        row(f"{name}: resident memory of ours", ours.resident_mib, unit="MiB"),
    ]


def scaling(bench: Bench, sizes: Sizes) -> list[Row]:
    """Two workers against one, both there when the events come, on all of the machine and each on a share of a core."""
    rows = []
    for what, share in (("two workers", 1.0), (f"two workers, each on {SHARE:.0%} of a core", SHARE)):
        one, two = (joined(bench.together(workers, random_clicks(sizes.ours), share=share)) for workers in (1, 2))
        alone, goal = Baseline("one worker", wall_rate(one)), Goal("at least", 1.8)
        rows += [
            row(f"{what}: events", wall_rate(two), unit="1/s", baseline=alone, goal=goal),
            row(f"{what}: events", rate(two), unit="1/CPU-s", baseline=Baseline("one worker", rate(one))),
        ]
    return rows


def joined(measured: Sequence[Measured]) -> Measured:
    """What several workers did together, from when the first began until the last was through."""
    return Measured(
        events=sum(one.events for one in measured),
        cpu_seconds=sum(one.cpu_seconds for one in measured),
        began=min(one.began for one in measured),
        ended=max(one.ended for one in measured),
    )


def on_garbage(bench: Bench, sizes: Sizes) -> list[Row]:
    """Garbage against none, on random users."""
    clean = bench.ours(bench.filled(random_clicks(sizes.ours)))
    garbage = bench.ours(bench.filled(with_garbage(random_clicks(sizes.ours))))
    without, goal = Baseline("without", rate(clean)), Goal("at least", 0.5)
    return [row("10 % garbage: events", rate(garbage), unit="1/CPU-s", baseline=without, goal=goal)]


def at_low_load(bench: Bench, sizes: Sizes) -> list[Row]:
    """One event at a time."""
    rows = []
    for per_second in LOADS:
        taken = bench.latency(per_second, sizes.latency_seconds)
        what = f"{per_second}/s: click in Kafka to sequence read, "
        rows += [
            row(what + "p50", taken.p50_ms, unit="ms", goal=Goal("at most", 10.0, of="ours")),
            row(what + "p95", taken.p95_ms, unit="ms"),
        ]
    return rows


def on_logs(bench: Bench, files: Sequence[Path], sizes: Sizes) -> list[Row]:
    """Every log and random users, and on the standard output the profile of the latter."""
    rows: list[Row] = []
    for number, path in enumerate(files):
        goal = 10.0 if number else 15.0
        rows += on_log(bench, path.stem, lambda count, path=path: log_messages(path, count), sizes, goal=goal)
    rows += on_log(bench, "random users", random_clicks, sizes, goal=10.0)
    print(bench.ours(bench.filled(random_clicks(sizes.ours // 2)), {PROFILE: "on"}).profile)
    return rows


def run(bench: Bench, files: Sequence[Path], sizes: Sizes, parts: Collection[Part]) -> list[Row]:
    """What of it was asked for."""
    rows: list[Row] = []
    if "logs" in parts:
        rows += on_logs(bench, files, sizes)
    if "workers" in parts:
        rows += scaling(bench, sizes) + on_garbage(bench, sizes)
    if "latency" in parts:
        rows += at_low_load(bench, sizes)
    return rows


def main() -> None:
    """Starts a Kafka of its own and prints the report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("files", nargs="*", type=Path, help="logs; the first one has the higher goal")
    parser.add_argument("--part", choices=PARTS, help="only this")
    parser.add_argument("--users", type=int, help="memory, bytes and recovery with so many users instead")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        local = LocalKafka(Path(name) / "kafka", port=0)
        local.start()
        try:
            bench = Bench(Path(name), local.bootstrap_servers)
            if chosen.users:
                report("stream, a million users", recover(bench, chosen.users))
            else:
                parts = (chosen.part,) if chosen.part else PARTS
                report("stream", run(bench, chosen.files, QUICK if chosen.quick else FULL, parts))
        finally:
            local.stop()


if __name__ == "__main__":
    explained(main)
