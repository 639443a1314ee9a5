"""What the registry keeps, in SQLite or PostgreSQL. Times are milliseconds since 1970, as everywhere here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from sqlalchemy import JSON, BigInteger, Integer, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1

VersionStatus = Literal["published", "promoted", "rejected"]
RetrainStatus = Literal["requested", "running", "promoted", "rejected", "undecided", "failed"]
Verdict = Literal["promoted", "rejected", "undecided", "failed"]
OPEN: tuple[RetrainStatus, ...] = ("requested", "running")
"""A retrain that is not over."""

# SQLite counts by itself only in a column of type INTEGER.
Identity = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
Whole = Annotated[int, mapped_column(BigInteger)]
Document = Annotated[dict[str, Any], mapped_column(JSON)]


class Base(DeclarativeBase):
    """Every table of ours; APScheduler keeps its own beside them."""


class Schema(Base):
    """One row: which version of these tables the database holds."""

    __tablename__ = "registry_schema"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ModelVersion(Base):
    """A checkpoint that was published for serving, or judged and not published."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("lineage", "version"),)

    id: Mapped[Identity]
    lineage: Mapped[str]
    version: Mapped[Whole]
    path: Mapped[str]
    manifest_sha256: Mapped[str]
    created_at_ms: Mapped[Whole]
    examples_trained: Mapped[Whole]
    trained_through_ms: Mapped[Whole | None]
    metrics: Mapped[Document]
    status: Mapped[str]
    pruned_at_ms: Mapped[Whole | None]
    """When its files were deleted."""


class Retrain(Base):
    """A full retrain from the request to the gate's verdict."""

    __tablename__ = "retrains"

    id: Mapped[Identity]
    requested_at_ms: Mapped[Whole]
    started_at_ms: Mapped[Whole | None]
    finished_at_ms: Mapped[Whole | None]
    status: Mapped[str]
    reason: Mapped[str | None]
    challenger_lineage: Mapped[str | None]
    judged_events: Mapped[Whole | None]
    ndcg_champion: Mapped[float | None]
    ndcg_challenger: Mapped[float | None]
