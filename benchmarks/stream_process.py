"""One worker of `benchmarks.stream` as a process of its own: it works off a backlog and says what that cost it.

    python -m benchmarks.stream_process KIND BOOTSTRAP PREFIX PARTITIONS DIRECTORY EVENTS

KIND is `ours` (the stream worker as it is, until SIGTERM), `faust` (an agent that takes event by event, decodes and
writes a RocksDB table), `aiokafka` (fetch and decode, nothing else) or `kafka-python` (fetch and the same fold, states
in memory, nothing written); all but `ours` end after EVENTS. The last line is a JSON object.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import os
import pstats
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stream.deadlines import Due
from stream.events import Click, Impression
from stream.folding import FoldedBatch, Folder
from stream.intake import Batch
from stream.marks import NEVER_DUE_MS, Marks
from stream.settings import KafkaSettings, StreamSettings
from stream.store import ROCKSDB_OPTIONS
from stream.sweeping import DueSoon
from stream.topics import CLICKS, IMPRESSIONS
from stream.worker import StreamWorker

PROFILE = "SASREC_BENCHMARK_PROFILE"
"""Set in the environment: `ours` tells where its time goes, and takes longer for it."""
CHUNK_RECORDS = "SASREC_BENCHMARK_CHUNK"
"""In the environment: `stream.chunk_records` of `ours`."""
PROFILED_FUNCTIONS = 16
FETCH_RECORDS = 2_000


class Measured(msgspec.Struct):
    """What a worker did behind its first batch, which only starts the clock: no start is counted in."""

    events: int = 0
    cpu_seconds: float = 0.0
    began: float = 0.0
    """Of the machine's monotonic clock, as `ended`."""
    ended: float = 0.0
    resident_mib: float = 0.0
    profile: str = ""


class Meter:
    """Counts events and processor seconds of this process."""

    def __init__(self) -> None:
        self.measured = Measured()
        self._cpu_before = 0.0

    def handled(self, count: int) -> int:
        """Takes in a batch; returns how many events were counted so far."""
        measured, now, cpu = self.measured, time.monotonic(), time.process_time()
        if not measured.began:
            measured.began, self._cpu_before = now, cpu
            return 0
        measured.events += count
        measured.ended, measured.cpu_seconds = now, cpu - self._cpu_before
        return measured.events

    def say(self) -> None:
        """Prints what was measured."""
        self.measured.resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(msgspec.json.encode(self.measured).decode(), flush=True)


class MeasuredWorker(StreamWorker):
    """The stream worker, counted and, if wanted, profiled."""

    meter = Meter()
    profile = cProfile.Profile() if PROFILE in os.environ else None

    async def handle(self, batch: Batch) -> None:
        """Carries a batch through, and counts it."""
        await super().handle(batch)
        was_counting = self.meter.measured.began
        if not was_counting:
            print(f"first {time.monotonic()}", flush=True)
        self.meter.handled(len(batch.records))
        if self.profile is not None and not was_counting:
            self.profile.enable()


def run_ours(kafka: KafkaSettings, directory: Path) -> None:
    """The stream worker, through Kafka to Kafka, until SIGTERM."""
    from stream.app import run_worker  # noqa: PLC0415 - Faust is not to weigh on the other kinds

    print("up", flush=True)
    run_worker(
        kafka,
        StreamSettings(chunk_records=int(os.environ.get(CHUNK_RECORDS, "2000"))),
        directory,
        instance=directory.name,
        worker=MeasuredWorker,
        on_ready=lambda: print("ready", flush=True),
    )
    profile = MeasuredWorker.profile
    if profile is not None:
        profile.disable()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(PROFILED_FUNCTIONS)
        MeasuredWorker.meter.measured.profile = text.getvalue()
    MeasuredWorker.meter.say()


def run_faust(kafka: KafkaSettings, directory: Path, events: int) -> None:
    """An agent as the documentation of Faust has it: for every event one write to a table on RocksDB."""
    import faust  # noqa: PLC0415 - not to weigh on the other kinds

    directory.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        kafka.group("per-event"),
        broker=f"kafka://{kafka.bootstrap_servers}",
        datadir=directory,
        store="rocksdb://",
        topic_partitions=kafka.partitions,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        autodiscover=False,
    )
    table = app.Table(
        "users",
        key_type=bytes,
        value_type=bytes,
        partitions=kafka.partitions,
        options=dict(ROCKSDB_OPTIONS),
    )
    kinds = {kafka.topic(CLICKS): Click, kafka.topic(IMPRESSIONS): Impression}
    decoders = {topic: msgspec.json.Decoder(kind) for topic, kind in kinds.items()}
    topics = app.topic(*kinds, key_serializer="raw", value_serializer="raw")
    meter = Meter()

    @app.agent(topics)  # type: ignore[untyped-decorator] # Faust has no types
    async def agent(stream: Any) -> None:  # noqa: ANN401 - Faust's stream
        async for event in stream.events():
            decoded = decoders[event.message.topic].decode(event.value)
            table[event.key] = b"%d" % decoded.timestamp_ms
            if meter.handled(1) >= events:
                meter.say()
                os._exit(0)  # nothing of what it leaves is looked at

    faust.Worker(app, loglevel="WARN", logfile=os.devnull, redirect_stdouts=False).execute_from_commandline()


async def run_aiokafka(kafka: KafkaSettings, events: int) -> None:
    """The bare client: fetch, decode, drop."""
    from aiokafka import AIOKafkaConsumer  # noqa: PLC0415 - not to weigh on the other kinds

    kinds = {kafka.topic(CLICKS): Click, kafka.topic(IMPRESSIONS): Impression}
    decoders = {topic: msgspec.json.Decoder(kind) for topic, kind in kinds.items()}
    consumer = AIOKafkaConsumer(*kinds, bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    meter = Meter()
    counted = 0
    while counted < events:
        for tp, records in (await consumer.getmany(timeout_ms=500, max_records=FETCH_RECORDS)).items():
            decode = decoders[tp.topic].decode
            for record in records:
                decode(record.value)
            counted = meter.handled(len(records))
    await consumer.stop()
    meter.say()


class MemoryRows:
    """States in memory, without deadlines: what the fold costs beside any store."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes | None] = {}
        self._marks = Marks()

    def marks(self) -> Marks:
        """As the last batch left them."""
        return self._marks

    def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """The rows of these users."""
        return [self._rows.get(key) for key in keys]

    def due(self, _before_ms: int, *, most: int) -> DueSoon:
        """Nothing ever falls due."""
        del most
        entries: list[Due] = []
        return DueSoon(entries, NEVER_DUE_MS)

    def write(self, folded: FoldedBatch) -> None:
        """Takes over what a batch led to."""
        self._rows.update(folded.states)
        self._marks = folded.marks


def run_kafka_python(kafka: KafkaSettings, events: int) -> None:
    """The other client and the same fold, one partition's records after another's."""
    from kafka import KafkaConsumer  # noqa: PLC0415 - not to weigh on the other kinds

    folder = Folder(kafka, StreamSettings())
    consumer = KafkaConsumer(
        kafka.topic(CLICKS),
        kafka.topic(IMPRESSIONS),
        bootstrap_servers=kafka.bootstrap_servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=FETCH_RECORDS,
    )
    rows = {partition: MemoryRows() for partition in range(kafka.partitions)}
    meter = Meter()
    counted = 0
    while counted < events:
        for tp, records in consumer.poll(timeout_ms=500).items():
            rows[tp.partition].write(folder.fold(records, rows[tp.partition]))
            counted = meter.handled(len(records))
    consumer.close()
    meter.say()


def main() -> None:
    """Runs one kind."""
    kind, bootstrap_servers, prefix, partitions, directory, events = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix, partitions=int(partitions))
    match kind:
        case "ours":
            run_ours(kafka, Path(directory))
        case "faust":
            run_faust(kafka, Path(directory), int(events))
        case "aiokafka":
            asyncio.run(run_aiokafka(kafka, int(events)))
        case "kafka-python":
            run_kafka_python(kafka, int(events))


if __name__ == "__main__":
    main()
