"""Performs a full retrain, writes down what came of it, and prunes what is past."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sqlalchemy import Engine

from deploy.registry.pruning import prune_past_lineages
from deploy.registry.registry import Outcome, finish_retrain, now_ms, record_version
from deploy.registry.tables import VersionStatus
from deploy.settings import Settings
from model.checkpoint import verify, version_path
from model.store import Place, absolute
from stream.events import MODEL_NAME, ModelAnnouncement
from trainer.publish import FIRST_VERSION
from trainer.retrain import Retrained, RetrainingSettings, run_retrain


def perform_retrain(
    settings: Settings, engine: Engine, retrain_id: int, *, stop: threading.Event, tell: Callable[[str], None]
) -> None:
    """Does a claimed retrain in this process, to the gate's verdict; one that breaks off has failed, and why."""
    sections = RetrainingSettings(
        settings.kafka,
        settings.stream,
        settings.model,
        settings.trainer,
        settings.retrain,
        settings.gate,
        settings.policy,
    )
    try:
        retrained = run_retrain(sections, checkpoints=settings.checkpoints, stop=stop, tell=tell)
    except Exception as error:
        outcome = Outcome(status="failed", reason=f"{type(error).__name__}: {error}")
        finish_retrain(engine, retrain_id, outcome, at_ms=now_ms())
        raise
    _record_challenger(engine, settings.checkpoints, retrained)
    finish_retrain(engine, retrain_id, outcome_of(retrained), at_ms=now_ms())
    prune_past_lineages(engine, settings.checkpoints, at_ms=now_ms())


def outcome_of(retrained: Retrained) -> Outcome:
    """What the registry keeps of a retrain."""
    verdict = retrained.verdict
    return Outcome(
        status=verdict.status,
        reason=verdict.reason,
        challenger_lineage=retrained.lineage,
        judged_events=verdict.events,
        ndcg_champion=verdict.ndcg_champion,
        ndcg_challenger=verdict.ndcg_challenger,
    )


def _record_challenger(engine: Engine, checkpoints: Place, retrained: Retrained) -> None:
    """Also one that never went live has its row."""
    announcement = retrained.announcement or _unannounced(checkpoints, retrained.lineage)
    metrics = {"ndcg10": retrained.verdict.ndcg_challenger, "judged_events": retrained.verdict.events}
    status: VersionStatus = "rejected" if retrained.announcement is None else "promoted"
    record_version(engine, announcement, status=status, metrics=metrics)


def _unannounced(checkpoints: Place, lineage: str) -> ModelAnnouncement:
    written = verify(version_path(checkpoints, lineage, FIRST_VERSION))
    manifest = written.manifest
    return ModelAnnouncement(
        model=MODEL_NAME,
        lineage=lineage,
        version=manifest.version,
        path=absolute(written.path),
        manifest_sha256=written.manifest_sha256,
        created_at_ms=manifest.created_at_ms,
        examples_trained=manifest.examples_trained,
    )
