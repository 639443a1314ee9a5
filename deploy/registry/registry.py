"""Reads and writes the registry: which model versions there were, which retrains were asked for and how they ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text, update
from sqlalchemy.orm import Session

from deploy.registry.tables import (
    OPEN,
    SCHEMA_VERSION,
    Base,
    ModelVersion,
    Retrain,
    RetrainStatus,
    Schema,
    Verdict,
    VersionStatus,
)
from stream.events import ModelAnnouncement

_BUSY_TIMEOUT_MS = 10_000
_ADVISORY_LOCK = 0x5A5BEC


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a retrain ended, and why."""

    status: Verdict
    reason: str
    challenger_lineage: str | None = None
    judged_events: int | None = None
    ndcg_champion: float | None = None
    ndcg_challenger: float | None = None


class VersionKey(NamedTuple):
    """Names one checkpoint."""

    lineage: str
    version: int


def open_registry(url: str) -> Engine:
    """Connects and makes the tables where they are missing; several processes may do so at once.

    Raises:
        ValueError: a newer sasrec-stream made the tables.
    """
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    with engine.begin() as connection:
        _lock(connection)
        Base.metadata.create_all(connection)
        stored = _schema_version(connection)
    if stored > SCHEMA_VERSION:
        engine.dispose()
        raise ValueError(
            f"the registry {engine.url.render_as_string(hide_password=True)} has schema {stored}, this sasrec-stream "
            f"knows {SCHEMA_VERSION}; upgrade it or set registry.url to another database"
        )
    return engine


@contextlib.contextmanager
def opened_registry(url: str) -> Iterator[Engine]:
    """The same, closed at the end."""
    engine = open_registry(url)
    try:
        yield engine
    finally:
        engine.dispose()


def now_ms() -> int:
    """Wall-clock time, as the registry keeps it."""
    return time.time_ns() // 1_000_000


def record_version(
    engine: Engine, announcement: ModelAnnouncement, *, status: VersionStatus, metrics: dict[str, Any] | None = None
) -> None:
    """Remembers a checkpoint. A trainer that resumes publishes the same one again: what was promoted stays promoted."""
    row: dict[str, Any] = {
        "path": announcement.path,
        "manifest_sha256": announcement.manifest_sha256,
        "created_at_ms": announcement.created_at_ms,
        "examples_trained": announcement.examples_trained,
        "trained_through_ms": announcement.trained_through_ms,
        "metrics": metrics or {},
        "status": status,
        "pruned_at_ms": None,
    }
    key = VersionKey(announcement.lineage, announcement.version)
    with engine.begin() as connection:
        known = connection.scalar(select(ModelVersion.status).where(_is(key)))
        if known is None:
            connection.execute(insert(ModelVersion).values(row | key._asdict()))
        else:
            kept = "promoted" if known == "promoted" else status
            connection.execute(update(ModelVersion).where(_is(key)).values(row | {"status": kept}))


def versions(engine: Engine, *, limit: int = 100) -> Sequence[ModelVersion]:
    """The newest first."""
    newest = select(ModelVersion).order_by(ModelVersion.created_at_ms.desc(), ModelVersion.id.desc())
    with Session(engine, expire_on_commit=False) as session:
        return session.scalars(newest.limit(limit)).all()


def live_lineage(engine: Engine) -> str | None:
    """The lineage that was last published or promoted."""
    serving = ModelVersion.status.in_(("published", "promoted"))
    newest = select(ModelVersion.lineage).where(serving).order_by(ModelVersion.id.desc()).limit(1)
    with Session(engine) as session:
        return session.scalar(newest)


def promoted_versions(engine: Engine, lineage: str) -> frozenset[int]:
    """The versions of a lineage that passed the gate."""
    promoted = (ModelVersion.lineage == lineage) & (ModelVersion.status == "promoted")
    with Session(engine) as session:
        return frozenset(session.scalars(select(ModelVersion.version).where(promoted)))


def mark_pruned(engine: Engine, keys: Iterable[VersionKey], *, at_ms: int) -> None:
    """Says that the files of these versions are gone."""
    with engine.begin() as connection:
        for key in keys:
            connection.execute(update(ModelVersion).where(_is(key)).values(pruned_at_ms=at_ms))


def request_retrain(engine: Engine, *, at_ms: int) -> int:
    """Asks the scheduler for a full retrain and returns its id."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        asked = Retrain(requested_at_ms=at_ms, status="requested")
        session.add(asked)
        session.flush()
        return asked.id


def take_requested_retrain(engine: Engine, *, at_ms: int) -> Retrain | None:
    """Claims the oldest requested retrain, or none; of several takers one gets it."""
    oldest = select(Retrain.id).where(Retrain.status == "requested").order_by(Retrain.id).limit(1).scalar_subquery()
    return _claim(engine, Retrain.id == oldest, at_ms=at_ms)


def take_retrain(engine: Engine, retrain_id: int, *, at_ms: int) -> Retrain | None:
    """Claims this retrain, or none when another has it already."""
    return _claim(engine, Retrain.id == retrain_id, at_ms=at_ms)


def finish_retrain(engine: Engine, retrain_id: int, outcome: Outcome, *, at_ms: int) -> None:
    """Writes down how it ended; what is over stays as it is."""
    running = (Retrain.id == retrain_id) & (Retrain.status == "running")
    with engine.begin() as connection:
        connection.execute(
            update(Retrain).where(running).values(finished_at_ms=at_ms, **msgspec.structs.asdict(outcome))
        )


def retrain_by_id(engine: Engine, retrain_id: int) -> Retrain:
    """The retrain as it stands now.

    Raises:
        ValueError: nobody asked for one of that id.
    """
    with Session(engine, expire_on_commit=False) as session:
        found = session.get(Retrain, retrain_id)
    if found is None:
        raise ValueError(f"no retrain {retrain_id} in the registry; ask for one with `sasrec-stream retrain`")
    return found


def has_open_retrain(engine: Engine) -> bool:
    """Whether one waits or runs."""
    return _has(engine, OPEN)


def has_running_retrain(engine: Engine) -> bool:
    """Whether a scheduler is at work on one."""
    return _has(engine, ("running",))


def fail_interrupted_retrains(engine: Engine, *, at_ms: int) -> int:
    """A scheduler that starts closes what its predecessor left running; returns how many."""
    left = {"status": "failed", "finished_at_ms": at_ms, "reason": "the scheduler ended while it ran; ask again"}
    with engine.begin() as connection:
        return connection.execute(update(Retrain).where(Retrain.status == "running").values(left)).rowcount


def _has(engine: Engine, statuses: Iterable[RetrainStatus]) -> bool:
    with Session(engine) as session:
        return session.scalar(select(Retrain.id).where(Retrain.status.in_(statuses)).limit(1)) is not None


def _claim(engine: Engine, which: Any, *, at_ms: int) -> Retrain | None:  # noqa: ANN401 - a column expression
    claimed = (
        update(Retrain)
        .where(which, Retrain.status == "requested")
        .values(status="running", started_at_ms=at_ms)
        .returning(Retrain.id)
    )
    with engine.begin() as connection:
        taken = connection.execute(claimed).scalar_one_or_none()
    return None if taken is None else retrain_by_id(engine, taken)


def _is(key: VersionKey) -> Any:  # noqa: ANN401 - a column expression
    return (ModelVersion.lineage == key.lineage) & (ModelVersion.version == key.version)


def _prepare_sqlite(engine: Engine) -> None:
    """Readers beside one writer (WAL), and a writer that waits for another instead of failing."""
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:  # noqa: ANN401 - DBAPI objects
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")


def _lock(connection: Connection) -> None:
    """Of processes that start together one makes the tables and the others find them."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})


def _schema_version(connection: Connection) -> int:
    stored = connection.scalar(select(Schema.version))
    if stored is None:
        connection.execute(insert(Schema).values(version=SCHEMA_VERSION))
    return stored or SCHEMA_VERSION
