"""The registry on SQLite and on PostgreSQL: the same tests on both."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, update

from deploy.registry.registry import (
    Outcome,
    VersionKey,
    fail_interrupted_retrains,
    finish_retrain,
    mark_pruned,
    open_registry,
    record_version,
    request_retrain,
    retrain_by_id,
    take_requested_retrain,
    take_retrain,
    versions,
)
from deploy.registry.tables import SCHEMA_VERSION, Base, Schema
from stream.events import ModelAnnouncement

FIRST = ModelAnnouncement(
    model="sasrec",
    lineage="a",
    version=1,
    path="/checkpoints/a/00000001",
    manifest_sha256="0" * 64,
    created_at_ms=1_000,
    examples_trained=10,
)
PROMOTED = Outcome(
    status="promoted",
    reason="better",
    challenger_lineage="b",
    judged_events=300,
    ndcg_champion=0.1,
    ndcg_challenger=0.2,
)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL of our own on a socket in a temporary folder; it refuses to run as root, so `postgres` runs it."""
    missing = [tool for tool in ("initdb", "postgres", "pg_ctl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)} on PATH")
    account = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="sasrec-postgres-"))
    cluster = folder / "cluster"
    if account:
        shutil.chown(folder, "postgres", "postgres")
    start = ["pg_ctl", "-D", str(cluster), "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -h ''", "start"]
    for command in (["initdb", "-D", str(cluster), "-A", "trust", "-U", "sasrec", "--no-sync"], start):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **account)  # type: ignore[call-overload]
    yield f"postgresql+psycopg://sasrec@/postgres?host={folder}"
    stop = ["pg_ctl", "-D", str(cluster), "-m", "immediate", "stop"]
    subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd=folder, **account)  # type: ignore[call-overload]
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'registry.db'}"
    postgres: str = request.getfixturevalue("postgres_url")
    return postgres


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_registry(url)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def test_versions_are_read_newest_first_and_one_promoted_stays_so_when_it_is_published_again(engine: Engine) -> None:
    second = msgspec.structs.replace(FIRST, version=2, created_at_ms=2_000)
    record_version(engine, FIRST, status="published")
    record_version(engine, second, status="published", metrics={"hr10": 0.25})

    record_version(engine, FIRST, status="promoted")
    record_version(engine, FIRST, status="published")

    newest, oldest = versions(engine)
    assert (newest.version, newest.metrics, newest.status) == (2, {"hr10": 0.25}, "published")
    assert (oldest.version, oldest.status, oldest.examples_trained) == (1, "promoted", 10)


def test_a_pruned_version_says_when_its_files_went(engine: Engine) -> None:
    record_version(engine, FIRST, status="published")

    mark_pruned(engine, [VersionKey("a", 1), VersionKey("a", 99)], at_ms=5_000)

    (version,) = versions(engine)
    assert version.pruned_at_ms == 5_000


def test_a_retrain_goes_from_request_to_verdict(engine: Engine) -> None:
    retrain_id = request_retrain(engine, at_ms=1)

    taken = take_requested_retrain(engine, at_ms=2)
    finish_retrain(engine, retrain_id, PROMOTED, at_ms=3)

    assert taken is not None
    assert (taken.id, taken.status, taken.requested_at_ms, taken.started_at_ms) == (retrain_id, "running", 1, 2)
    over = retrain_by_id(engine, retrain_id)
    assert (over.status, over.reason, over.finished_at_ms) == ("promoted", "better", 3)
    assert (over.challenger_lineage, over.judged_events, over.ndcg_champion, over.ndcg_challenger) == (
        "b",
        300,
        0.1,
        0.2,
    )


def test_the_oldest_request_is_taken_first_and_only_once(engine: Engine) -> None:
    asked = [request_retrain(engine, at_ms=at_ms) for at_ms in (1, 2)]

    taken = [take_requested_retrain(engine, at_ms=3) for _ in range(3)]

    assert [retrain and retrain.id for retrain in taken] == [*asked, None]
    assert take_retrain(engine, asked[0], at_ms=4) is None


def test_of_many_takers_exactly_one_gets_a_retrain(engine: Engine) -> None:
    request_retrain(engine, at_ms=1)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda at_ms: take_requested_retrain(engine, at_ms=at_ms), range(16)))

    assert sum(retrain is not None for retrain in taken) == 1


def test_what_a_dead_scheduler_left_running_is_failed_and_a_late_verdict_changes_nothing(engine: Engine) -> None:
    retrain_id = request_retrain(engine, at_ms=1)
    take_requested_retrain(engine, at_ms=2)

    assert fail_interrupted_retrains(engine, at_ms=3) == 1
    finish_retrain(engine, retrain_id, PROMOTED, at_ms=4)

    left = retrain_by_id(engine, retrain_id)
    assert (left.status, left.finished_at_ms) == ("failed", 3)


def test_an_unknown_retrain_is_refused_with_what_to_do(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"no retrain 404 .* `sasrec-stream retrain`"):
        retrain_by_id(engine, 404)


def test_many_may_open_a_fresh_registry_at_once(engine: Engine, url: str) -> None:
    Base.metadata.drop_all(engine)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_registry(url), range(8)))

    for other in opened:
        assert versions(other) == []
        other.dispose()


def test_a_newer_schema_is_refused(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        connection.execute(update(Schema).values(version=SCHEMA_VERSION + 1))

    with pytest.raises(ValueError, match=r"schema 2, this sasrec-stream knows 1; upgrade it or set registry\.url"):
        open_registry(url)


def test_the_database_survives_its_process(engine: Engine, url: str) -> None:
    record_version(engine, FIRST, status="published")

    again = open_registry(url)

    assert [version.lineage for version in versions(again)] == ["a"]
    again.dispose()
