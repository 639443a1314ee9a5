"""Where the jars of Apache Kafka come from: an installation of the user's, else a pinned release fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from deploy.local.kafka_fetch import Report, fetched_jars

START_SCRIPT = "kafka-server-start.sh"


class Release(NamedTuple):
    """An Apache Kafka on disk."""

    jars: tuple[Path, ...]
    log_settings: Path | None = None
    """The log4j2 file of an installation; the pinned release logs to standard error by itself."""

    @property
    def digest(self) -> str:
        """Differs between releases; names what is made from one."""
        return hashlib.sha256("\n".join(jar.name for jar in self.jars).encode()).hexdigest()[:16]


def find_release(report: Report) -> Release:
    """The Kafka of KAFKA_HOME, else of `kafka-server-start.sh` on PATH, else the pinned one, fetched if need be.

    Raises:
        ValueError: KAFKA_HOME names no Kafka, or nothing could be fetched.
    """
    home = os.environ.get("KAFKA_HOME")
    if home:
        return _installed(Path(home), f"KAFKA_HOME={home}")
    script = shutil.which(START_SCRIPT)
    if script:
        return _installed(Path(script).resolve().parent.parent, script)
    return Release(fetched_jars(report))


def _installed(home: Path, named_by: str) -> Release:
    jars = tuple(sorted((home / "libs").glob("*.jar")))
    if not jars:
        raise ValueError(f"{named_by} is no Apache Kafka: no jars in {home / 'libs'}; name its folder in KAFKA_HOME")
    log_settings = home / "config" / "log4j2.yaml"
    return Release(jars, log_settings if log_settings.exists() else None)
