"""Click in Kafka -> fresh recommendation in Kafka: how long, hop by hop, while the trainer learns?

    .venv/bin/python -m benchmarks.latency FILE [--rates 100 500 1000 2000 4000] [--seconds S] [--quick]

A log of ratings holds one busy user after another, which no site sees: the clicks of its users are interleaved at
random (each user's own order stays) and dated a millisecond apart. The first of them go in at full speed, so that a
model serves and histories stand; the next ones at each rate in turn, evenly, whatever comes back (an open loop). A
click is stamped with the time when it is due, in the record of its user's sequence, in its slate (`generated_at_ms`),
and when the client reads that slate. A user's next click may come before the slate of the last: then only the newest is
answered, and the answer is counted as that one's. The client decodes nothing and reads no sequences before a rate is
over: what it takes of the two cores is taken from the system.

Processor time is told for every process, the client's own too: all of them share the machine.

The baseline is Kafka alone: the same clicks, read back from their own topic by the same client in the same run.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import psutil
import pyarrow as pa
from kafka import TopicPartition

from benchmarks.client import Arrived, Client, Position
from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from benchmarks.system import BROKER, PROCESSES, System, running_system
from deploy.observe.reading import partitions_of
from deploy.replay.events import Message, events
from deploy.replay.formats import load_log
from deploy.replay.player import Pace
from deploy.scoring.histories import decode_history
from stream import clients
from stream.settings import KafkaSettings
from stream.topics import CLICKS, RECOMMENDATIONS, SEQUENCES

RATES = (100, 500, 1_000, 2_000, 4_000)
SECONDS, QUICK_SECONDS = 20.0, 5.0
WARM_UP_CLICKS, QUICK_WARM_UP_CLICKS = 50_000, 5_000
GOAL_RATE = 500
SUSTAINED_MS = 1_000.0
"""A rate is sustained where the slowest answers of its last clicks take no longer."""
SETTLE_SECONDS = 60.0
CLIENT = "this client"

Hop = Literal["click sent -> in its sequence", "sequence -> ranked", "ranked -> read by the client", "click -> slate"]


class Slate(msgspec.Struct, frozen=True):
    """What is read of a recommendation."""

    cause: dict[str, Any]
    generated_at_ms: int
    model_version: str | None = None


class Seen(NamedTuple):
    """Times in milliseconds since 1970, by the click's position."""

    sent: dict[Position, float]
    read_back: dict[Position, float]
    in_sequence: dict[Position, float]
    ranked: dict[Position, float]
    answered: dict[Position, float]
    versions: set[str]


class Measured(NamedTuple):
    """One rate."""

    rate: int
    sent: int
    answered: int
    hops: dict[Hop, np.ndarray]
    """Milliseconds, one number for each click that was answered by a slate of its own."""
    read_back: np.ndarray
    """Milliseconds of Kafka alone."""
    versions: int
    cores: dict[str, float]
    """What each process took of a core while the clicks came; this one is the client, which sends and reads."""

    @property
    def is_sustained(self) -> bool:
        """Whether nothing piled up."""
        tail = self.hops["click -> slate"][-max(1, self.answered // 10) :]
        return self.answered > 0 and float(tail.max()) <= SUSTAINED_MS


def seen_of(arrived: Iterable[Arrived], *, sent: dict[Position, float], sequences: Iterable[Any]) -> Seen:
    """What a client sent and what came back, and the records of `sequences` that were written meanwhile."""
    seen, decoder = Seen(sent, {}, {}, {}, {}, set()), msgspec.json.Decoder(Slate)
    for record in sequences:
        cause = None if record.value is None else decode_history(record.value).cause
        if cause is not None:
            seen.in_sequence.setdefault((cause.partition, cause.offset), record.timestamp)
    for one in arrived:
        if one.topic == CLICKS:
            seen.read_back[one.partition, one.offset] = one.at_ms
        elif one.value is not None:
            _take_slate(seen, decoder.decode(one.value), one.at_ms)
    return seen


def _take_slate(seen: Seen, slate: Slate, at_ms: float) -> None:
    if slate.cause["topic"] == CLICKS:
        position = slate.cause["partition"], slate.cause["offset"]
        seen.answered.setdefault(position, at_ms)
        seen.ranked.setdefault(position, slate.generated_at_ms)
        seen.versions.add(str(slate.model_version))


def _ends(kafka: KafkaSettings, name: str) -> dict[TopicPartition, int]:
    """Where the next record of each partition will stand."""
    with contextlib.closing(clients.consumer(kafka)) as consumer:
        ends: dict[TopicPartition, int] = consumer.end_offsets(partitions_of(consumer, kafka.topic(name)))
        return ends


def _between(kafka: KafkaSettings, begins: dict[TopicPartition, int], ends: dict[TopicPartition, int]) -> Iterator[Any]:
    """Records that stand there, partition by partition in order."""
    with contextlib.closing(clients.consumer(kafka)) as consumer:
        consumer.assign(list(begins))
        for partition, offset in begins.items():
            consumer.seek(partition, offset)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for partition, records in consumer.poll(timeout_ms=100).items():
                yield from (record for record in records if record.offset < ends[partition])


def measure(system: System, client: Client, messages: Iterable[Message], *, rate: int) -> Measured:
    """Plays the messages at a rate and waits until all are done; then looks at what came when."""
    at_hand, begins = client.addressed(messages), _ends(system.kafka, SEQUENCES)
    client.arrived.clear()
    began, before = time.monotonic(), _processor_seconds(system)
    sent = client.send(at_hand, rate=rate)
    seconds, after = time.monotonic() - began, _processor_seconds(system)
    system.wait_until_caught_up(("stream", "scoring"))
    _settle(client)
    cores = {name: (after[name] - before[name]) / seconds for name in before}
    written = _between(system.kafka, begins, _ends(system.kafka, SEQUENCES))
    seen = seen_of(client.arrived, sent=sent, sequences=written)
    return measured(seen, rate=rate, sent=len(at_hand), cores=cores)


def _processor_seconds(system: System) -> dict[str, float]:
    """Of every process so far."""
    pids = {name: system.pid(name) for name in (*PROCESSES, BROKER)}
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: spent.user + spent.system for name, spent in times.items()} | {CLIENT: time.process_time()}


def _settle(client: Client) -> None:
    """The last slates are on their way to the client: until nothing more comes."""
    deadline, before = time.monotonic() + SETTLE_SECONDS, -1
    while len(client.arrived) != before and time.monotonic() < deadline:
        before = len(client.arrived)
        time.sleep(0.5)


def measured(seen: Seen, *, rate: int, sent: int, cores: dict[str, float]) -> Measured:
    """Hops of the clicks that have a slate of their own, in the order in which they were sent."""
    positions = [
        position
        for position in sorted(seen.sent, key=seen.sent.__getitem__)
        if position in seen.answered and position in seen.in_sequence
    ]
    stamps = [
        [times[position] for position in positions]
        for times in (seen.sent, seen.in_sequence, seen.ranked, seen.answered)
    ]
    sent_N, sequence_N, ranked_N, answered_N = np.array(stamps).reshape(4, len(positions))
    back = [seen.read_back[position] - at for position, at in seen.sent.items() if position in seen.read_back]
    hops: dict[Hop, np.ndarray] = {
        "click sent -> in its sequence": sequence_N - sent_N,
        "sequence -> ranked": ranked_N - sequence_N,
        "ranked -> read by the client": answered_N - ranked_N,
        "click -> slate": answered_N - sent_N,
    }
    return Measured(rate, sent, len(positions), hops, np.array(back), len(seen.versions), cores)


def rows_of(all_measured: Sequence[Measured]) -> list[Row]:
    """Every rate: the whole way beside Kafka alone, then its hops."""
    rows = [line for one in all_measured for line in _rows_of_rate(one)]
    sustained = [one.rate for one in all_measured if one.is_sustained]
    return [*rows, row("highest rate sustained", max(sustained, default=0), unit="clicks/s")]


def _rows_of_rate(one: Measured) -> Iterator[Row]:
    yield row(
        f"{one.rate}/s: clicks with a slate of their own",
        one.answered,
        unit="",
        baseline=Baseline("clicks sent", one.sent),
    )
    for percent, most_ms in ((50, 25.0), (99, 100.0)):
        for hop, took in one.hops.items():
            is_whole = hop == "click -> slate"
            yield row(
                f"{one.rate}/s: {hop}, p{percent}",
                _percentile(took, percent),
                unit="ms",
                baseline=Baseline("Kafka alone", _percentile(one.read_back, percent)) if is_whole else None,
                goal=Goal("at most", most_ms, of="ours") if is_whole and one.rate == GOAL_RATE else None,
            )
    yield row(f"{one.rate}/s: model versions that served", one.versions, unit="")
    for name, share in one.cores.items():
        yield row(f"{one.rate}/s: {name}", share, unit="cores")


def _percentile(values: np.ndarray, percent: int) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def interleaved(rows: pa.Table, *, end_ms: int, seed: int = 0) -> pa.Table:
    """All users at once: a random order in which each user's own is kept, dated a millisecond apart up to `end_ms`."""
    user_N = rows["user_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    drawn_N = np.random.default_rng(seed).random(rows.num_rows)
    by_user_N, by_place_N = np.lexsort((np.arange(rows.num_rows), user_N)), np.lexsort((drawn_N, user_N))
    place_N = np.empty(rows.num_rows)
    place_N[by_user_N] = drawn_N[by_place_N]
    ordered = rows.take(pa.array(np.argsort(place_N)))
    time_N = pa.array(np.arange(end_ms - rows.num_rows, end_ms), ordered.schema.field("time_ms").type)
    return ordered.set_column(ordered.schema.get_field_index("time_ms"), "time_ms", time_N)


def run(file: Path, directory: Path, *, rates: Sequence[int], seconds: float, warm_up: int) -> list[Measured]:
    """Starts the system, warms it up, and measures rate after rate on the clicks that follow in the log."""
    rows = interleaved(load_log(file).rows, end_ms=time.time_ns() // 1_000_000)
    needed = warm_up + sum(int(rate * seconds) for rate in rates)
    if rows.num_rows < needed:
        raise ValueError(
            f"{needed:,} clicks are needed, the log has {rows.num_rows:,}; give fewer --rates or --seconds"
        )
    messages = (message for event in events(rows.slice(warm_up)) for message in event.messages)
    with running_system(directory) as system:
        system.play(rows.slice(0, warm_up), pace=Pace(None))
        system.wait_until_caught_up()
        with Client(system.kafka, (CLICKS, RECOMMENDATIONS)) as client:
            return [measure(system, client, islice(messages, int(rate * seconds)), rate=rate) for rate in rates]


def main() -> None:
    """Measures and reports."""
    parser = arguments("Click in Kafka -> fresh recommendation in Kafka, hop by hop, at several rates.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="clicks a second, one after another")
    parser.add_argument("--seconds", type=float, help=f"of every rate; {SECONDS:g}, quick {QUICK_SECONDS:g}")
    options = parser.parse_args()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    warm_up = QUICK_WARM_UP_CLICKS if options.quick else WARM_UP_CLICKS
    rates = options.rates[:2] if options.quick else options.rates
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        found = run(options.file, Path(folder), rates=rates, seconds=seconds, warm_up=warm_up)
    report("latency", rows_of(found))


if __name__ == "__main__":
    explained(main)
