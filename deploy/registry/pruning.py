"""Removes the checkpoints of lineages that are past; the trainer prunes the one that it writes."""

from __future__ import annotations

from pathlib import Path

import structlog
from sqlalchemy import Engine

from deploy.registry.registry import VersionKey, live_lineage, mark_pruned, promoted_versions
from model.checkpoint import prune

KEPT_PER_LINEAGE = 1
"""Of a lineage that is past: its last version, to go back to."""
QUIET_MS = 3_600_000
"""A lineage to which nothing was written for so long has no writer any more."""


def prune_past_lineages(engine: Engine, checkpoints: Path, *, at_ms: int) -> list[VersionKey]:
    """Keeps the last version of every lineage and those that were promoted; returns what went."""
    live = live_lineage(engine)
    past = [folder for folder in _lineages(checkpoints) if folder.name != live and _is_quiet(folder, at_ms=at_ms)]
    gone = [
        VersionKey(folder.name, version)
        for folder in past
        for version in prune(folder, keep=KEPT_PER_LINEAGE, spare=promoted_versions(engine, folder.name))
    ]
    mark_pruned(engine, gone, at_ms=at_ms)
    if gone:
        structlog.get_logger().info("checkpoints of past lineages pruned", versions=len(gone))
    return gone


def _lineages(checkpoints: Path) -> list[Path]:
    return sorted(folder for folder in checkpoints.iterdir() if folder.is_dir()) if checkpoints.is_dir() else []


def _is_quiet(folder: Path, *, at_ms: int) -> bool:
    return folder.stat().st_mtime * 1_000 < at_ms - QUIET_MS
