"""Removes the checkpoints of lineages that are past; the trainer prunes the one that it writes."""

from __future__ import annotations

from pathlib import Path

import structlog
from sqlalchemy import Engine

from deploy.registry.registry import VersionKey, live_lineage, mark_pruned, promoted_versions
from model.checkpoint import delta_versions, full_versions, newest_checkpoint, prune, prune_deltas
from model.store import Place, names

KEPT_PER_LINEAGE = 1
"""Of a lineage that is past: its last version, to go back to."""
QUIET_MS = 3_600_000
"""A lineage to which nothing was written for so long has no writer any more."""


def prune_past_lineages(engine: Engine, checkpoints: Place, *, at_ms: int) -> list[VersionKey]:
    """Keeps of every lineage the last full version and those promoted or pinned; returns which full ones went."""
    live = live_lineage(engine)
    past = [folder for folder in _lineages(checkpoints) if folder.name != live and _is_quiet(folder, at_ms=at_ms)]
    for folder in past:
        prune_deltas(folder, through=max(delta_versions(folder), default=0))
    gone = [
        VersionKey(folder.name, version)
        for folder in past
        for version in prune(folder, keep=KEPT_PER_LINEAGE, spare=promoted_versions(engine, folder.name))
    ]
    mark_pruned(engine, gone, at_ms=at_ms)
    if gone:
        structlog.get_logger().info("checkpoints of past lineages pruned", versions=len(gone))
    return gone


def _lineages(checkpoints: Place) -> list[Place]:
    """Folders with checkpoints in them."""
    folders = [checkpoints / name for name in names(checkpoints) if not name.startswith(".")]
    return [folder for folder in folders if full_versions(folder)]


def _is_quiet(folder: Place, *, at_ms: int) -> bool:
    return _last_written_ms(folder) < at_ms - QUIET_MS


def _last_written_ms(folder: Place) -> float:
    """A store tells no times: there, when the newest checkpoint says that it was made."""
    if isinstance(folder, Path):
        return folder.stat().st_mtime * 1_000
    newest = newest_checkpoint(folder, on_broken=lambda _: None)
    return 0.0 if newest is None else newest.manifest.created_at_ms
