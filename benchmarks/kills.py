"""Does anything get lost or doubled when the stream worker and the broker are killed, and how soon does it go on?

    .venv/bin/python -m benchmarks.kills [FILE] [--kills 200] [--broker-kills 10] [--quick]

A backlog of FILE (a log; uniformly random clicks without one) is worked off while the worker, again and again, is ended
by kill -9 at a random moment after it has handled its first events, and so is the broker. Then the same backlog is
worked off by a worker that nobody disturbs, on topics of its own, and both are compared: what compaction leaves of
`sequences`, byte for byte, and `examples` as a trainer reads them, which remembers one highest id per source partition.
"""

from __future__ import annotations

import contextlib
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.backlog import EVENTS_PER_MS, fill
from benchmarks.common import Baseline, Goal, Row, arguments, equal, explained, report, row
from benchmarks.stream import Bench, is_finished, log_messages, random_clicks, wait_until_finished
from benchmarks.stream_process import CHUNK_RECORDS
from deploy.local.kafka import LocalKafka
from deploy.observe.reading import read_all
from deploy.replay.events import Message
from stream.accounts import read_accounts
from stream.examples import decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, SEQUENCES
from trainer.cut import fresh

SMALL_CHUNKS = {CHUNK_RECORDS: "200"}
"""So small that a kill finds the worker at any step of its protocol, and often."""
AT_ONCE = 20_000
LIFE_SECONDS = 0.4
"""At most so long after its first batch a worker lives."""
MOST_MESSAGES = 10_000_000


class Outcome(NamedTuple):
    """What one run left on the topics."""

    sequences: dict[bytes, bytes]
    examples: list[bytes]
    """Those that a trainer learns from, in its order."""
    repeated: int
    """Examples that it passes over."""
    unaccounted: int


class Killing(NamedTuple):
    """What was done to the disturbed run."""

    messages: int
    workers: int
    brokers: int
    seconds: list[float]
    """From every kill of a worker to the first batch that its successor has finished."""


class Disturber:
    """Works off a backlog with workers that end as the plan has it, and tells how soon their successors went on."""

    def __init__(
        self, bench: Bench, broker: Path, kafka: KafkaSettings, source: Iterator[Message], first_ms: int
    ) -> None:
        self._bench = bench
        self._broker = broker
        self._kafka = kafka
        self._source = source
        self._first_ms = first_ms
        self._dice = random.Random(5)
        self._killed_at: float | None = None
        self.sent = 0
        self.seconds: list[float] = []

    def run(self, plan: list[str]) -> Killing:
        """Kills what the plan names, one after another; the last worker finishes."""
        self._send_more()
        for victim in plan:
            with self._worker() as worker:
                time.sleep(self._dice.uniform(0, LIFE_SECONDS))
                if victim == "broker":
                    self._restart_broker()
                    time.sleep(self._dice.uniform(0, LIFE_SECONDS))
                if is_finished(self._kafka):
                    self._send_more()
                worker.kill()
                worker.wait()
                self._killed_at = time.monotonic()
        with self._worker() as worker:
            wait_until_finished(self._kafka)
            worker.send_signal(signal.SIGTERM)
            worker.wait()
        counted = Counter(plan)
        return Killing(self.sent, len(plan), counted["broker"], self.seconds)

    def _send_more(self) -> None:
        first_ms = self._first_ms + self.sent // EVENTS_PER_MS
        self.sent += fill(self._kafka, islice(self._source, AT_ONCE), first_ms=first_ms)

    def _restart_broker(self) -> None:
        local = LocalKafka(self._broker)
        process = psutil.Process(local.pid)
        process.kill()
        process.wait()
        local.start()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Any]:
        """A worker that has finished its first batch."""
        directory = self._bench.directory / "killed"
        with self._bench.started("ours", self._kafka, directory=directory, environment=SMALL_CHUNKS) as worker:
            handled_at = _first_batch(worker)
            if self._killed_at is not None:
                self.seconds.append(handled_at - self._killed_at)
            yield worker


def _first_batch(worker: Any) -> float:  # noqa: ANN401 - a Popen of text
    for line in worker.stdout:
        word, _, at = line.partition(" ")
        if word == "first":
            return float(at)
    raise ValueError("a worker ended before it had handled anything; see what it logged")


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
    return Outcome(states, [repr(example).encode() for example in kept], read - len(kept), unaccounted)


def compared(killing: Killing, disturbed: Outcome, peace: Outcome) -> list[Row]:
    """The report."""
    ours, theirs = Counter(disturbed.examples), Counter(peace.examples)
    other = sum(disturbed.sequences.get(key) != row_ for key, row_ in peace.sequences.items())
    none = Baseline("none", 0.0)
    quantiles = statistics.quantiles(killing.seconds, n=20) if len(killing.seconds) > 1 else [float("nan")] * 19
    return [
        row("messages", killing.messages, unit=""),
        row("kill -9 of the worker", killing.workers, unit=""),
        row("kill -9 of the broker", killing.brokers, unit=""),
        equal("users on sequences", len(disturbed.sequences), Baseline("undisturbed", len(peace.sequences))),
        equal("users whose record differs by a byte", other, none),
        equal("examples that a trainer learns", ours.total(), Baseline("undisturbed", theirs.total())),
        equal("examples lost", (theirs - ours).total(), none),
        equal("examples doubled or invented", (ours - theirs).total(), none),
        row("examples sent again, and passed over", disturbed.repeated, unit=""),
        equal("unaccounted in the ledger", disturbed.unaccounted, none),
        row(
            "kill to the first events handled again, p50",
            statistics.median(killing.seconds),
            unit="s",
            goal=Goal("at most", 4.0, of="ours"),
        ),
        row("kill to the first events handled again, p95", quantiles[-1], unit="s"),
    ]


def plan(workers: int, brokers: int) -> list[str]:
    """The broker's ends among the workers'."""
    kills = ["worker"] * workers + ["broker"] * brokers
    random.Random(13).shuffle(kills)
    return kills


def main() -> None:
    """Starts a Kafka of its own and prints the report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("file", nargs="?", type=Path, help="a log; random clicks without one")
    parser.add_argument("--kills", type=int, default=200, help="of the worker")
    parser.add_argument("--broker-kills", type=int, default=10)
    chosen = parser.parse_args()
    kills, broker_kills = (6, 1) if chosen.quick else (chosen.kills, chosen.broker_kills)

    def source() -> Iterator[Message]:
        return log_messages(chosen.file, MOST_MESSAGES) if chosen.file else random_clicks(MOST_MESSAGES, users=5_000)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kafka"
        local = LocalKafka(folder, port=0)
        local.start()
        try:
            bench = Bench(Path(name), local.bootstrap_servers)
            disturbed, peace = bench.topics(), bench.topics()
            first_ms = int(time.time() * 1000)
            killing = Disturber(bench, folder, disturbed, source(), first_ms).run(plan(kills, broker_kills))
            undisturbed(bench, peace, islice(source(), killing.messages), first_ms=first_ms)
            report("kills", compared(killing, outcome(disturbed), outcome(peace)))
        finally:
            LocalKafka(folder).stop()


if __name__ == "__main__":
    explained(main)
