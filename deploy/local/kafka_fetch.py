r"""Fetches the pinned release of Apache Kafka by its coordinates, through `mvn` or jgo, into the user's cache.

`kafka_jars.sha256` pins every jar: its path in a Maven repository and its SHA-256. To move to another release, let
`mvn -C dependency:copy-dependencies -DincludeScope=runtime -Dmdep.useRepositoryLayout=true` fetch the coordinates in
`POM` into an empty folder, and there write the new list with `find . -name '*.jar' -printf '%P\n' | sort | xargs
sha256sum`. `-C` refuses a jar that differs from the checksum beside it in the repository.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deploy.local.kafka_cache import cache_folder, made_once

VERSION = "4.3.1"
PINNED = Path(__file__).with_name("kafka_jars.sha256")

POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>sasrec-stream</groupId>
  <artifactId>local-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

ELSE = (
    "start a Kafka of your own and name it with --bootstrap-servers, for instance: "
    f"docker run -d -p 9092:9092 apache/kafka:{VERSION}"
)

Report = Callable[[str], None]
"""Told, in a line, what is being done while a person waits."""


class Jar(NamedTuple):
    """A pinned jar."""

    path: PurePosixPath
    """In a Maven repository: group/artifact/version/artifact-version.jar, the group's dots as slashes."""
    sha256: str

    @property
    def coordinates(self) -> tuple[str, str, str]:
        """Group, artifact, version."""
        *group, artifact, version, _file = self.path.parts
        return ".".join(group), artifact, version


def pinned_jars() -> tuple[Jar, ...]:
    """Every jar of the pinned release."""
    lines = [line.split() for line in PINNED.read_text().splitlines()]
    return tuple(Jar(PurePosixPath(path), sha256) for sha256, path in lines)


def fetched_jars(report: Report) -> tuple[Path, ...]:
    """The jars of the pinned release in the user's cache, fetched once and verified then.

    Raises:
        ValueError: no client could fetch them, or one differs from its pinned checksum.
    """
    folder = made_once(cache_folder() / f"kafka-{VERSION}", lambda aside: _fetch(aside, report))
    return tuple(folder / jar.path for jar in pinned_jars())


def _fetch(aside: Path, report: Report) -> None:
    """Through the first client that can; why the others could not is told if none can."""
    report(f"fetching Apache Kafka {VERSION}, 46 MB, once")
    reasons = []
    for client in (_fetch_by_mvn, _fetch_by_jgo):
        try:
            client(aside, report)
            _verify(aside)
        except (OSError, RuntimeError) as error:
            reasons.append(str(error))
        else:
            return
    raise ValueError(f"Apache Kafka {VERSION} could not be fetched: {'; '.join(reasons)}. Mend that, or {ELSE}")


def _verify(folder: Path) -> None:
    """Removes what differs, so that the next client fetches it again.

    Raises:
        RuntimeError: a jar is missing or is not the pinned one.
    """
    wrong = [folder / jar.path for jar in pinned_jars() if _sha256(folder / jar.path) != jar.sha256]
    for path in wrong:
        path.unlink(missing_ok=True)
    if wrong:
        names = ", ".join(path.name for path in wrong[:3])
        raise RuntimeError(f"{len(wrong)} jars ({names}, ...) came with another checksum than the pinned one")


def _sha256(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_by_mvn(folder: Path, report: Report) -> None:
    """Strictly: mvn itself refuses what differs from the repository's checksums; the mirrors of its user are used.

    Raises:
        RuntimeError: there is no mvn, or it failed.
    """
    mvn = shutil.which("mvn")
    if mvn is None:
        raise RuntimeError("mvn is not on PATH")
    pom = folder / "pom.xml"
    pom.write_text(POM)
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-Dmdep.useRepositoryLayout=true"]
    command = [mvn, "-B", "-C", "-f", str(pom), *goal, f"-DoutputDirectory={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        errors = [line.strip() for line in process.stdout if _worth_keeping(line, report)]
    if process.returncode != 0:
        raise RuntimeError(f"mvn ended with {process.returncode}: {' '.join(errors[:3])}")


def _worth_keeping(line: str, report: Report) -> bool:
    """Whether it is an error of mvn; what it says of a jar is reported on the way."""
    if done := re.search(r"Downloaded from .*/(\S+\.jar)", line):
        report(f"fetched {done.group(1)}")
    return "[ERROR]" in line


def _fetch_by_jgo(folder: Path, report: Report) -> None:
    """Jar by jar, by the pinned coordinates; jgo only warns of a wrong checksum, ours refuses it.

    Raises:
        RuntimeError: the `local-kafka` extra is not installed, or a jar is not to be had.
    """
    if importlib.util.find_spec("jgo") is None:
        raise RuntimeError("jgo is not installed: pip install 'sasrec-stream[local-kafka]'")
    context: Any = importlib.import_module("jgo.maven").MavenContext(repo_cache=folder, local_repos=[])
    jars = pinned_jars()
    for count, jar in enumerate(jars, start=1):
        report(f"fetching {jar.path.name} ({count} of {len(jars)})")
        group, artifact, version = jar.coordinates
        context.project(group, artifact).at_version(version).artifact().resolve()
