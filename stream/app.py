"""The Faust app of the stream worker: made by a factory, run until a signal, restarted by whoever started it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust
import faust.tables
import uvloop
from faust.serializers.codecs import codecs
from yarl import URL

from stream import chunks
from stream.admin import require_topics
from stream.batches import BatchProducer
from stream.codecs import AIOKAFKA, bound_decompression
from stream.folding import SOURCES
from stream.garbage import collect_rarely
from stream.reading import Reader
from stream.recovery import Recovery
from stream.settings import KafkaSettings, StreamSettings
from stream.store import ROCKSDB_OPTIONS, StateStore
from stream.topics import SEQUENCES
from stream.watchdog import progress_of, watch
from stream.worker import StreamWorker

GROUP = "stream"
QUEUED_CHUNKS = 4
SESSION_SECONDS = 6.0
HEARTBEAT_SECONDS = 1.5
COMMIT_SECONDS = 0.5
FETCH_BYTES = 4 << 20


class Tables(faust.tables.TableManager):  # type: ignore[misc] # Faust has no types
    """Starts at once: Faust's own waits a second for tables to be made, and ours are before the app starts."""

    async def on_start(self) -> None:
        """Subscribes to the changelogs."""
        await self._update_channels()
        await self.recovery.start()


def create_app(kafka: KafkaSettings, stream: StreamSettings, directory: Path, *, instance: str | None) -> faust.App:
    """An app without agents; nothing is opened or connected before it starts."""
    chunks.register()
    bound_decompression(AIOKAFKA)
    for name in [name for name in codecs if name.startswith("pickle")]:
        del codecs[name]  # whoever can write to a topic must not be able to run code here
    return faust.App(
        kafka.group(GROUP),
        broker=[URL(f"{chunks.SCHEME}://{server}") for server in kafka.bootstrap_servers.split(",")],
        datadir=directory,
        store="rocksdb://",
        TableManager=Tables,
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication_factor,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_group_instance_id=instance,
        consumer_max_fetch_size=FETCH_BYTES,
        broker_max_poll_records=stream.chunk_records,
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=HEARTBEAT_SECONDS,
        # A standby reads every other worker's changelog record by record, which costs more than the work itself.
        table_standby_replicas=0,
        web_enabled=False,
        autodiscover=False,
    )


def run_worker(
    kafka: KafkaSettings,
    stream: StreamSettings,
    directory: Path,
    *,
    instance: str | None = None,
    worker: type[StreamWorker] = StreamWorker,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs until SIGTERM or SIGINT, then finishes and commits the chunk under way; raises what no retry can cure.

    `instance` names this worker among those of the group, the same after every restart: its partitions then wait for it
    instead of moving. `on_ready` is called once, when the states are recovered and reading begins.

    Raises:
        ValueError: topics are missing or stand otherwise than they must, and how to mend them.
    """
    require_topics(kafka)
    directory.mkdir(parents=True, exist_ok=True)
    collect_rarely()
    loop_factory = uvloop.new_event_loop if stream.event_loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_run(kafka, stream, directory, instance=instance, worker=worker, on_ready=on_ready))


async def _run(
    kafka: KafkaSettings,
    stream: StreamSettings,
    directory: Path,
    *,
    instance: str | None,
    worker: type[StreamWorker],
    on_ready: Callable[[], None],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = create_app(kafka, stream, directory, instance=instance)
    async with BatchProducer(kafka, GROUP) as producer:
        chunks.take_over_with(app, producer.take_over)
        store = StateStore(add_table(app, kafka), stream)
        chunks.restore_with(app, Recovery(app, store).restore)
        add_agent(app, kafka, stream, lambda: worker(kafka, stream, producer=producer, store=store))
        watch(lambda: progress_of(app), patience_seconds=stream.stall_seconds)
        await _run_until(stop, app, on_ready)


async def _run_until(stop: asyncio.Event, app: faust.App, on_ready: Callable[[], None]) -> None:
    """Starting may take long, while states are recovered; the signal counts from the first moment."""
    running = asyncio.create_task(_start_and_run(app, on_ready))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    try:
        await app.stop()
    finally:
        if app.crashed:
            raise app.crash_reason
    if running.done():
        running.result()
    running.cancel()


async def _start_and_run(app: faust.App, on_ready: Callable[[], None]) -> None:
    await app.start()
    if not app.should_stop:
        on_ready()
    await app.wait_until_stopped()


def add_table(app: faust.App, kafka: KafkaSettings) -> Any:  # noqa: ANN401 - Faust has no types
    """The table of users; its changelog is the topic `sequences`."""
    changelog = app.topic(
        kafka.topic(SEQUENCES),
        key_type=bytes,
        value_type=bytes,
        # Recovery decodes by these alone: without them it takes our bytes for JSON, fails, and waits for ever.
        key_serializer="raw",
        value_serializer="raw",
        acks=False,
        internal=True,
        compacting=True,
    )
    return app.Table(
        SEQUENCES,
        key_type=bytes,
        value_type=bytes,
        partitions=kafka.partitions,
        changelog_topic=changelog,
        options=dict(ROCKSDB_OPTIONS),
    )


def add_agent(
    app: faust.App, kafka: KafkaSettings, stream: StreamSettings, make_worker: Callable[[], StreamWorker]
) -> None:
    """One agent over all input topics: chunks are handled one by one, whichever topic they came from."""
    topics = [kafka.topic(name) for name in SOURCES]
    inputs = app.topic(*topics, key_serializer="raw", value_serializer="raw", maxsize=QUEUED_CHUNKS)

    @app.agent(inputs, name="stream")  # type: ignore[untyped-decorator] # Faust has no types
    async def agent(chunks: Any) -> None:  # noqa: ANN401 - Faust's stream
        await Reader(app, kafka, make_worker(), patience_seconds=stream.stall_seconds / 2).read(chunks)
