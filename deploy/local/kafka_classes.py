"""An archive of Kafka's classes, parsed and linked, so that the broker is up in half the time.

Java writes it at the end of a run that used them (before Java 25 as an AppCDS archive, since then as an AOT cache).
That takes seconds, which nobody wants to wait for when they stop a broker, so a throw-away broker runs once for it.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from kafka.errors import KafkaError

from deploy.local.kafka_cache import cache_folder, made_once
from deploy.local.kafka_fetch import Report
from deploy.local.kafka_jvm import Jvm
from deploy.local.kafka_process import BrokerFolder, launch, wait_for_answer
from stream.clients import admin, consumer, producer
from stream.settings import KafkaSettings

_TOPIC = "rehearsal"
_SECONDS = 60.0


def with_archive(jvm: Jvm, report: Report) -> Jvm:
    """The same, reading its classes from the archive in the user's cache; made first if there is none.

    Where it cannot be made there is none, now and later: the broker starts all the same, in twice the time.
    """
    folder = made_once(cache_folder() / f"kafka-classes-{jvm.digest}", lambda aside: _make(jvm, aside, report))
    archive = _archive_in(folder)
    return jvm.reading(archive) if archive.exists() else jvm


def forget_archive(jvm: Jvm) -> None:
    """Removes an archive with which the broker does not start."""
    _archive_in(cache_folder() / f"kafka-classes-{jvm.digest}").unlink(missing_ok=True)


def _archive_in(folder: Path) -> Path:
    return folder / "classes.archive"


def _make(jvm: Jvm, folder: Path, report: Report) -> None:
    report("an archive of its classes for quick starts, once, about ten seconds")
    with tempfile.TemporaryDirectory(prefix="kafka-rehearsal-") as directory:
        try:
            _rehearse(jvm.recording(_archive_in(folder)), BrokerFolder(Path(directory)))
        except (ValueError, KafkaError, subprocess.TimeoutExpired) as error:
            _archive_in(folder).unlink(missing_ok=True)
            report(f"no archive of its classes; it starts without: {error}")


def _rehearse(jvm: Jvm, folder: BrokerFolder) -> None:
    """What every broker goes through: a start, a message, a consumer group, a stop."""
    with launch(jvm, folder, port=0) as child:
        try:
            wait_for_answer(folder, lambda: child.poll() is None)
            _use(KafkaSettings(bootstrap_servers=folder.bootstrap_servers, topic_prefix=""))
            child.terminate()
            child.wait(_SECONDS)
        finally:
            child.kill()


def _use(kafka: KafkaSettings) -> None:
    with admin(kafka) as client:
        client.create_topics({_TOPIC: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    with producer(kafka) as sender:
        sender.send(_TOPIC, b"a message").get(timeout=_SECONDS)
    with consumer(kafka, group_id=_TOPIC) as reader:
        reader.subscribe([_TOPIC])
        reader.poll(timeout_ms=10_000)
        reader.commit()
