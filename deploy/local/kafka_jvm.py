"""The Java virtual machine of the local Kafka: its memory and its command lines."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from deploy.local.kafka_fetch import Report
from deploy.local.kafka_java import Java, find_java
from deploy.local.kafka_release import Release, find_release

# Up in seconds and small, for a broker that is rarely the bottleneck: one collector thread, the quick compiler.
_FLAGS = ("-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_WHEN_IT_BREAKS = ("-XX:+ExitOnOutOfMemoryError", "-XX:-CreateCoredumpOnCrash")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    # These write the whole configuration, hundreds of lines, at every start.
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
)
_AHEAD_OF_TIME = 25


class Jvm(NamedTuple):
    """A Java, the jars of a Kafka, and how its classes are loaded."""

    java: Java
    release: Release
    class_flags: tuple[str, ...] = ()

    def command(self, main: str, *arguments: str) -> list[str]:
        """The command line that runs this class of Kafka."""
        jars = os.pathsep.join(map(str, self.release.jars))
        return [str(self.java.path), *_FLAGS, *self.class_flags, *self._logging(), "-cp", jars, main, *arguments]

    def server(self, properties: Path) -> list[str]:
        """The command line of the broker; should Java itself crash, it says why beside the settings."""
        crash = (*_WHEN_IT_BREAKS, f"-XX:ErrorFile={properties.with_name('java-crash.log')}")
        return self._replace(class_flags=(*self.class_flags, *crash)).command("kafka.Kafka", str(properties))

    def recording(self, archive: Path) -> Jvm:
        """The same; at its end it writes the classes that it loaded, parsed and linked, into the archive."""
        flag = "AOTCacheOutput" if self.java.major >= _AHEAD_OF_TIME else "ArchiveClassesAtExit"
        return self._replace(class_flags=(f"-XX:{flag}={archive}",))

    def reading(self, archive: Path) -> Jvm:
        """The same, with classes from the archive; one that does not fit Java refuses with a warning, and goes on."""
        flag = "AOTCache" if self.java.major >= _AHEAD_OF_TIME else "SharedArchiveFile"
        return self._replace(class_flags=(f"-XX:{flag}={archive}",))

    @property
    def digest(self) -> str:
        """Differs wherever Java would refuse the other's class archive: another Java, a jar written at another time."""
        files = [self.java.modules, *self.release.jars]
        facts = [self.java.version, *_FLAGS, *(f"{file} {file.stat().st_mtime_ns}" for file in files)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def _logging(self) -> tuple[str, ...]:
        settings = self.release.log_settings
        return _LOGGING if settings is None else (f"-Dlog4j2.configurationFile={settings}",)


def find_jvm(report: Report) -> Jvm:
    """The Java and the Kafka of this machine, fetched if need be.

    Raises:
        ValueError: there is none; it says what to do.
    """
    return Jvm(find_java(), find_release(report))
