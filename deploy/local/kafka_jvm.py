"""The Java virtual machine of the local Kafka: its memory and its command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from deploy.local.kafka_fetch import Report
from deploy.local.kafka_java import Java, find_java
from deploy.local.kafka_release import Release, find_release

# Up in seconds and small, for a broker that is rarely the bottleneck: one collector thread, the quick compiler.
_FLAGS = ("-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    # These two write the whole configuration, hundreds of lines, at every start.
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
)


class Jvm(NamedTuple):
    """A Java and the jars of a Kafka."""

    java: Java
    release: Release

    def command(self, main: str, *arguments: str) -> list[str]:
        """The command line that runs this class of Kafka."""
        jars = os.pathsep.join(map(str, self.release.jars))
        return [str(self.java.path), *_FLAGS, *self._logging(), "-cp", jars, main, *arguments]

    def server(self, properties: Path) -> list[str]:
        """The command line of the broker."""
        return self.command("kafka.Kafka", str(properties))

    def _logging(self) -> tuple[str, ...]:
        settings = self.release.log_settings
        return _LOGGING if settings is None else (f"-Dlog4j2.configurationFile={settings}",)


def find_jvm(report: Report) -> Jvm:
    """The Java and the Kafka of this machine, fetched if need be.

    Raises:
        ValueError: there is none; it says what to do.
    """
    return Jvm(find_java(), find_release(report))
