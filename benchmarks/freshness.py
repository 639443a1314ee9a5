"""Click in Kafka -> first published weights that have learnt it: how long, at 500 and at 5,000 clicks a second?

    .venv/bin/python -m benchmarks.freshness FILE [--rates 500 5000] [--seconds S] [--order file|interleaved] [--quick]

The whole system runs, scoring worker included, as `sasrec-stream up` starts it. The first clicks of the log warm it
up; the next ones go in evenly at each rate in turn, whatever comes back. A click begins with Kafka's timestamp of it,
and has ended when a reader of `models` reads the first announcement whose offsets lie past the click's example. What
was sent and never learnt would count as infinitely late. `file` plays users as the log has them, one busy user after
another; `interleaved` mixes all users, so that hardly two clicks of a micro-batch are of one user.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
from jaxtyping import Float, Int

from benchmarks.client import Client
from benchmarks.common import Baseline, Goal, Row, arguments, equal, explained, report, row
from benchmarks.latency import interleaved
from benchmarks.system import BROKER, System, running_system
from deploy.observe.reading import partitions_of, read_all
from deploy.observe.scrape import Sample
from deploy.replay.events import events
from deploy.replay.formats import load_log
from deploy.replay.player import Pace
from stream import clients
from stream.examples import decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, MODELS
from trainer.examples import announced

RATES = (500, 5_000)
SECONDS, QUICK_SECONDS = 60.0, 8.0
WARM_UP_CLICKS, QUICK_WARM_UP_CLICKS = 20_000, 5_000
IDLE_SECONDS = 10.0
LINGER_MS = 5.0
"""How long a click waits for company before it is sent, as Kafka's own producer has it (linger.ms since 4.0)."""
GOAL_MS = 3_000.0
COUNTS = ("sasrec_examples_trained_total", "sasrec_step_seconds_count", "sasrec_step_seconds_sum")


class Version(NamedTuple):
    """When a version could be read, and the examples that it had not learnt."""

    read_at_ms: float
    offsets: dict[str, int]


class Span(NamedTuple):
    """One rate: when it began and ended, in milliseconds since 1970, and what the trainer had done by then."""

    rate: int
    began_ms: float
    ended_ms: float
    sent: int
    before: dict[str, float]
    after: dict[str, float]
    processor: dict[str, float]
    """Processor seconds that each process took, until everything was learnt."""
    seconds: float
    """Until everything was learnt."""


class Examples(NamedTuple):
    """All clicks of one partition of `examples`, in its order."""

    offset_N: Int[np.ndarray, " N"]
    arrived_ms_N: Float[np.ndarray, " N"]
    """Kafka's timestamp of the click."""
    written_ms_N: Float[np.ndarray, " N"]
    """Kafka's timestamp of its example."""


class Announcements:
    """Reads `models` as it comes, on a thread of its own."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.versions: list[Version] = []
        self._kafka = kafka
        self._ended, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Announcements:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(clients.consumer(self._kafka)) as consumer:
            consumer.assign(partitions_of(consumer, self._kafka.topic(MODELS)))
            consumer.seek_to_end()
            for partition in consumer.assignment():
                consumer.position(partition)
            self._ready.set()
            while not self._ended.is_set():
                for records in consumer.poll(timeout_ms=100).values():
                    now_ms = time.time() * 1_000
                    self.versions += (Version(now_ms, one.offsets) for one in announced(records))


def examples_of(kafka: KafkaSettings) -> dict[int, Examples]:
    """Everything on `examples`, by partition."""
    found: dict[int, list[tuple[int, float, float]]] = {}
    for record in read_all(kafka, EXAMPLES):
        example = decode_example(record.value)
        found.setdefault(record.partition, []).append(
            (record.offset, float(getattr(example, "arrived_at_ms", np.nan)), float(record.timestamp))
        )
    return {partition: Examples(*np.array(stamps).T) for partition, stamps in found.items()}


def ages(examples: Examples, versions: Sequence[Version], *, partition: int) -> Float[np.ndarray, " N"]:
    """Milliseconds from each click's arrival to the first version that had learnt it; infinite where none has."""
    past_V = np.maximum.accumulate([version.offsets.get(str(partition), 0) for version in versions] or [0])
    read_at_V = np.array([*(version.read_at_ms for version in versions), np.inf])
    first_N = np.searchsorted(past_V, examples.offset_N, side="right")
    age_N: np.ndarray = read_at_V[np.minimum(first_N, len(versions))] - examples.arrived_ms_N
    return age_N


def rows_of(spans: Sequence[Span], examples: dict[int, Examples], versions: Sequence[Version]) -> list[Row]:
    """The report."""
    age = {partition: ages(found, versions, partition=partition) for partition, found in examples.items()}
    rows: list[Row] = []
    for span in spans:
        within = {
            partition: (found.arrived_ms_N >= span.began_ms) & (found.arrived_ms_N <= span.ended_ms)
            for partition, found in examples.items()
        }
        age_N = np.concatenate([age[partition][mask] for partition, mask in within.items()])
        folding_N = np.concatenate(
            [(examples[p].written_ms_N - examples[p].arrived_ms_N)[m] for p, m in within.items()]
        )
        count = sum(span.began_ms <= version.read_at_ms <= span.ended_ms for version in versions)
        rows += _rows_of_rate(span, age_N, folding_N, versions=count)
    return rows


def _rows_of_rate(span: Span, age_N: np.ndarray, folding_N: np.ndarray, *, versions: int) -> list[Row]:
    steps = {name: span.after[name] - span.before[name] for name in COUNTS}
    seconds = (span.ended_ms - span.began_ms) / 1_000
    name = f"{span.rate}/s: "
    return [
        row(name + "clicks sent a second", span.sent / seconds, unit="1/s"),
        equal(name + "clicks learnt and published", int(np.isfinite(age_N).sum()), Baseline("clicks sent", span.sent)),
        row(name + "click -> published weights, p50", _percentile(age_N, 50), unit="ms"),
        row(
            name + "click -> published weights, p99",
            _percentile(age_N, 99),
            unit="ms",
            goal=Goal("at most", GOAL_MS, of="ours"),
        ),
        row(name + "click -> published weights, slowest", _percentile(age_N, 100), unit="ms"),
        row(name + "click -> its example, p99", _percentile(folding_N, 99), unit="ms"),
        row(name + "versions published a second", versions / seconds, unit="1/s"),
        row(name + "examples per micro-batch", steps[COUNTS[0]] / max(1.0, steps[COUNTS[1]]), unit=""),
        row(name + "clicks learnt a second, until all were", span.sent / span.seconds, unit="1/s"),
        row(name + "share of that time inside micro-batches", steps[COUNTS[2]] / span.seconds, unit=""),
        *(
            row(f"{name}processor time of {process}, share of a core", seconds / span.seconds, unit="")
            for process, seconds in span.processor.items()
        ),
    ]


def _percentile(values: np.ndarray, percent: int) -> float:
    return float(np.percentile(values, percent, method="higher")) if len(values) else float("nan")


def counts_of(samples: Iterable[Sample]) -> dict[str, float]:
    """What the trainer has done since its start."""
    found = {sample.name: sample.value for sample in samples if sample.name in COUNTS}
    return {name: found.get(name, 0.0) for name in COUNTS}


def measure(system: System, rows: pa.Table, *, rate: int) -> Span:
    """Plays the rows at a rate, and waits until the trainer has learnt them.

    The player shares the machine with what is measured, and so has everything encoded before it begins.
    """
    messages = [message for event in events(rows) for message in event.messages]
    with Client(system.kafka, (MODELS,), every_ms=LINGER_MS) as player:
        clicks = player.addressed(messages)
        before, spent, began_ms = counts_of(system.metrics("trainer")), _spent(system), time.time() * 1_000
        player.send(clicks, rate=rate)
        ended_ms = time.time() * 1_000
    system.wait_until_caught_up(("stream", "trainer"))
    return Span(
        rate=rate,
        began_ms=began_ms,
        ended_ms=ended_ms,
        sent=len(rows),
        before=before,
        after=counts_of(system.metrics("trainer")),
        processor={name: seconds - spent[name] for name, seconds in _spent(system).items()},
        seconds=time.time() - began_ms / 1_000,
    )


def idle_share(system: System, *, seconds: float) -> float:
    """Of a core, that the trainer takes while nothing comes."""
    before = _spent(system)["trainer"]
    time.sleep(seconds)
    return (_spent(system)["trainer"] - before) / seconds


def _spent(system: System) -> dict[str, float]:
    """Processor seconds of the processes that a click passes through, and of the benchmark itself."""
    pids = {name: system.pid(name) for name in ("stream", "trainer", "scoring", BROKER)} | {"the player": os.getpid()}
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: taken.user + taken.system for name, taken in times.items()}


def run(rows: pa.Table, directory: Path, *, rates: Sequence[int], seconds: float, warm_up: int) -> list[Row]:
    """Starts the system, warms it up, and measures rate after rate on the clicks that follow in the log."""
    needed = warm_up + sum(int(rate * seconds) for rate in rates)
    if rows.num_rows < needed:
        raise ValueError(f"{needed:,} clicks are needed, the log has {rows.num_rows:,}; give fewer --seconds")
    at, spans = warm_up, []
    with running_system(directory) as system:
        system.play(rows.slice(0, warm_up), pace=Pace(None))
        system.wait_until_caught_up()
        with Announcements(system.kafka) as announcements:
            for rate in rates:
                count = int(rate * seconds)
                spans.append(measure(system, rows.slice(at, count), rate=rate))
                at += count
        idle = row("trainer while nothing comes, share of a core", idle_share(system, seconds=IDLE_SECONDS), unit="")
        return [*rows_of(spans, examples_of(system.kafka), announcements.versions), idle]


def main() -> None:
    """Measures and reports."""
    parser = arguments("Click in Kafka -> first published weights that have learnt it.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="clicks a second, one after another")
    parser.add_argument("--seconds", type=float, help=f"of every rate; {SECONDS:g}, quick {QUICK_SECONDS:g}")
    parser.add_argument("--order", choices=("file", "interleaved"), default="file", help="of the users' clicks")
    options = parser.parse_args()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    warm_up = QUICK_WARM_UP_CLICKS if options.quick else WARM_UP_CLICKS
    rows = load_log(options.file).rows
    if options.order == "interleaved":
        rows = interleaved(rows, end_ms=time.time_ns() // 1_000_000)
    with tempfile.TemporaryDirectory(prefix="freshness-") as folder:
        found = run(rows, Path(folder), rates=options.rates, seconds=seconds, warm_up=warm_up)
    report("freshness", found)


if __name__ == "__main__":
    explained(main)
