"""Does anything get lost or doubled when the stream worker and the broker are killed, and how soon does it go on?

    .venv/bin/python -m benchmarks.kills [FILE] [--kills 200] [--broker-kills 10] [--minutes M] [--beside] [--quick]

A backlog of FILE (a log; uniformly random clicks without one) is worked off while the worker, again and again, is ended
by kill -9 at a random moment, most of them after it has handled its first new events, some while it starts; and so is
the broker. Then the same backlog is worked off by a worker that nobody disturbs, on topics of its own, and both are
compared: what compaction leaves of `sequences`, byte for byte, and `examples` as a trainer reads them, which remembers
one highest id per source partition. What is killed is counted as it happens: once the backlog is worked off, or the
minutes are over, no more.

With `--beside` another worker shares the partitions, and every few kills it is killed as well and one of another name
takes its place: members of the group join, vanish and are missed, and partitions move under load.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.backlog import fill
from benchmarks.common import Baseline, Goal, Row, arguments, equal, explained, report, row
from benchmarks.stream import Bench, is_finished, log_messages, random_clicks, wait_until_finished
from benchmarks.stream_process import CHUNK_RECORDS
from deploy.local.kafka import LocalKafka
from deploy.observe.reading import read_all
from deploy.replay.events import Message
from stream.accounts import read_accounts
from stream.examples import decode_example, encode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, SEQUENCES
from trainer.cut import fresh

MARK_BYTES = 16
LOOK_SECONDS = 3.0
SMALL_CHUNKS = {CHUNK_RECORDS: "200"}
"""So small that a kill finds the worker at any step of its protocol, and often."""
PER_KILL = 4_000
"""Messages of the backlog for every kill: more than a life takes, mostly."""
LIFE_SECONDS = 0.25
"""At most so long after its first batch a worker lives."""
STILLBORN = 0.2
"""The share of workers killed within `START_SECONDS`, whether they have handled anything or not."""
START_SECONDS = 3.0


BESIDE_KILLS = 4
"""As many workers are killed for every one beside them."""


class Outcome(NamedTuple):
    """What one run left on the topics."""

    sequences: dict[bytes, bytes]
    examples: list[bytes]
    """A hash of each that a trainer learns from, in its order."""
    repeated: int
    """Examples that it passes over."""
    unaccounted: int


class Disturber:
    """Works off a backlog with workers that end as the plan has it, and tells how soon their successors went on."""

    def __init__(self, bench: Bench, broker: Path, kafka: KafkaSettings, *, seed: int) -> None:
        self._bench = bench
        self._broker = broker
        self._kafka = kafka
        self._dice = random.Random(seed)
        self._killed_at: float | None = None
        self.killed: Counter[str] = Counter()
        self.seconds: list[float] = []

    def run(self, plan: list[str], *, minutes: float, beside: bool) -> None:
        """Kills what the plan names, one after another, as long as there is work and time; the last worker finishes."""
        with contextlib.ExitStack() as others:
            self._kill_all(plan, minutes * 60, others if beside else None)
            while not is_finished(self._kafka):
                self._finish()

    def _kill_all(self, plan: list[str], seconds: float, others: contextlib.ExitStack | None) -> None:
        deadline = time.monotonic() + seconds
        for nth, victim in enumerate(plan):
            if others is not None and nth % BESIDE_KILLS == 0:
                self._renew(others, nth)
            if self._dice.random() < STILLBORN:
                self._kill_while_it_starts()
            self._kill_at_work(victim)
            if is_finished(self._kafka) or time.monotonic() > deadline:
                break

    def _finish(self) -> None:
        with self._worker() as worker:
            self._measure(worker)
            while worker.poll() is None and not is_finished(self._kafka):
                time.sleep(LOOK_SECONDS)
            worker.send_signal(signal.SIGTERM)
            worker.wait()

    def _renew(self, others: contextlib.ExitStack, nth: int) -> None:
        """Leaving the context kills the worker that was beside."""
        self.killed["beside"] += nth > 0
        others.close()
        directory = self._bench.directory / f"beside-{nth}"
        others.enter_context(self._bench.started("ours", self._kafka, directory=directory, environment=SMALL_CHUNKS))

    def _kill_while_it_starts(self) -> None:
        with self._worker() as worker:
            time.sleep(self._dice.uniform(0, START_SECONDS))
            self._kill(worker)
        self.killed["worker, starting"] += 1

    def _kill_at_work(self, victim: str) -> None:
        with self._worker() as worker:
            self._measure(worker)
            time.sleep(self._dice.uniform(0, LIFE_SECONDS))
            if victim == "broker":
                self._restart_broker()
                self.killed["broker"] += 1
                time.sleep(self._dice.uniform(0, LIFE_SECONDS))
            self._kill(worker)
        self.killed["worker, at work"] += 1

    def _kill(self, worker: Any) -> None:  # noqa: ANN401 - a Popen of text
        worker.kill()
        worker.wait()
        self._killed_at = time.monotonic()

    def _restart_broker(self) -> None:
        local = LocalKafka(self._broker)
        process = psutil.Process(local.pid)
        process.kill()
        process.wait()
        local.start()

    def _worker(self) -> contextlib.AbstractContextManager[Any]:
        directory = self._bench.directory / "killed"
        return self._bench.started("ours", self._kafka, directory=directory, environment=SMALL_CHUNKS)

    def _measure(self, worker: Any) -> None:  # noqa: ANN401 - a Popen of text
        """Waits until a worker has handled its first batch; where nothing is left, it never will."""
        handled_at = _first_batch(worker, self._kafka)
        self.killed["by itself"] += worker.poll() is not None
        if self._killed_at is not None and handled_at is not None:
            self.seconds.append(handled_at - self._killed_at)


def _first_batch(worker: Any, kafka: KafkaSettings) -> float | None:  # noqa: ANN401 - a Popen
    said = b""
    while not (b"first " in said and said.endswith(b"\n")):
        ready, _, _ = select.select([worker.stdout], [], [], LOOK_SECONDS)
        if ready:
            more = os.read(worker.stdout.fileno(), 4_096)
            if not more:
                worker.wait()
                return None
            said += more
        elif is_finished(kafka):
            return None
    return float(said.partition(b"first ")[2].split()[0])


def undisturbed(bench: Bench, kafka: KafkaSettings, source: Iterator[Message], *, first_ms: int) -> None:
    """The same messages at the same offsets with the same timestamps, worked off in peace."""
    fill(kafka, source, first_ms=first_ms)
    with bench.started("ours", kafka, directory=bench.directory / "peace", environment=SMALL_CHUNKS) as worker:
        wait_until_finished(kafka)
        worker.send_signal(signal.SIGTERM)
        worker.wait()


def outcome(kafka: KafkaSettings) -> Outcome:
    """Reads what a run left."""
    states: dict[bytes, bytes] = {}
    for record in read_all(kafka, SEQUENCES):
        if record.value is None:
            states.pop(record.key, None)
        else:
            states[record.key] = record.value
    by_partition: dict[int, list[Any]] = {}
    for record in read_all(kafka, EXAMPLES):
        by_partition.setdefault(record.partition, []).append(decode_example(record.value))
    kept = [example for partition in sorted(by_partition) for example in fresh(by_partition[partition], {}).examples]
    read = sum(map(len, by_partition.values()))
    unaccounted = sum(abs(account.waiting) for account in read_accounts(kafka))
    marks = [blake2b(encode_example(example), digest_size=MARK_BYTES).digest() for example in kept]
    return Outcome(states, marks, read - len(kept), unaccounted)


def compared(messages: int, disturber: Disturber, disturbed: Outcome, peace: Outcome) -> list[Row]:
    """The report."""
    ours, theirs = Counter(disturbed.examples), Counter(peace.examples)
    other = sum(disturbed.sequences.get(key) != row_ for key, row_ in peace.sequences.items())
    none = Baseline("none", 0.0)
    killed, seconds = disturber.killed, disturber.seconds
    quantiles = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else [float("nan")] * 19
    return [
        row("messages", messages, unit=""),
        row("kill -9 of the worker at work", killed["worker, at work"], unit=""),
        row("kill -9 of the worker while it started", killed["worker, starting"], unit=""),
        row("kill -9 of another worker beside it", killed["beside"], unit=""),
        row("kill -9 of the broker", killed["broker"], unit=""),
        row("workers that ended before they had handled anything", killed["by itself"], unit=""),
        equal("users on sequences", len(disturbed.sequences), Baseline("undisturbed", len(peace.sequences))),
        equal("users whose record differs by a byte", other, none),
        equal("examples that a trainer learns", ours.total(), Baseline("undisturbed", theirs.total())),
        equal("examples lost", (theirs - ours).total(), none),
        equal("examples doubled or invented", (ours - theirs).total(), none),
        row("examples sent again, and passed over", disturbed.repeated, unit=""),
        equal("unaccounted in the ledger", disturbed.unaccounted, none),
        row(
            "kill to the first events handled again, p50",
            statistics.median(seconds or [float("nan")]),
            unit="s",
            goal=Goal("at most", 4.0, of="ours"),
        ),
        row("kill to the first events handled again, p95", quantiles[-1], unit="s"),
    ]


def plan(workers: int, brokers: int, *, seed: int) -> list[str]:
    """The broker's ends among the workers'; with the broker its worker ends as well."""
    kills = ["worker"] * (workers - brokers) + ["broker"] * brokers
    random.Random(seed).shuffle(kills)
    return kills


def main() -> None:
    """Starts a Kafka of its own and prints the report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("file", nargs="?", type=Path, help="a log; random clicks without one")
    parser.add_argument("--kills", type=int, default=200, help="of the worker at work")
    parser.add_argument("--broker-kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more is killed")
    parser.add_argument("--beside", action="store_true", help="another worker, and then another, shares the partitions")
    parser.add_argument("--seed", type=int, default=13)
    chosen = parser.parse_args()
    kills, broker_kills = (6, 1) if chosen.quick else (chosen.kills, chosen.broker_kills)

    def source() -> Iterator[Message]:
        most = kills * PER_KILL
        return log_messages(chosen.file, most) if chosen.file else random_clicks(most, users=5_000)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kafka"
        local = LocalKafka(folder, port=0)
        local.start()
        try:
            bench = Bench(Path(name), local.bootstrap_servers)
            disturbed, peace = bench.topics(), bench.topics()
            first_ms = int(time.time() * 1000)
            messages = fill(disturbed, source(), first_ms=first_ms)
            disturber = Disturber(bench, folder, disturbed, seed=chosen.seed)
            disturber.run(plan(kills, broker_kills, seed=chosen.seed), minutes=chosen.minutes, beside=chosen.beside)
            undisturbed(bench, peace, source(), first_ms=first_ms)
            report("kills", compared(messages, disturber, outcome(disturbed), outcome(peace)))
        finally:
            LocalKafka(folder).stop()


if __name__ == "__main__":
    explained(main)
