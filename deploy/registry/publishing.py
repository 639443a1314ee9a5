"""The trainer as a process: every full checkpoint that it publishes gets its row in the registry."""

from __future__ import annotations

import functools
import threading

import structlog
from prometheus_client import REGISTRY
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from deploy.registry.registry import opened_registry, record_version
from deploy.settings import Settings
from stream.events import ModelAnnouncement
from trainer.crew import rank_in
from trainer.loop import run_trainer

FIGURES = ("sasrec_prequential_hr10", "sasrec_prequential_ndcg10")


def run_recorded_trainer(settings: Settings, stop: threading.Event) -> None:
    """Learns until `stop` is set. Of several processes (trainer/crew.py) the one that leads publishes."""
    run = functools.partial(
        run_trainer, settings.kafka, settings.model, settings.trainer, checkpoints=settings.checkpoints, stop=stop
    )
    if rank_in() > 0:
        run()
        return
    with opened_registry(settings.registry_url) as engine:
        run(on_published=functools.partial(record_published, engine))


def record_published(engine: Engine, announcement: ModelAnnouncement) -> None:
    """A registry that does not answer is said, and holds up no learning: scoring workers follow `models`, not it.

    Deltas come every second and are gone within minutes: they get no row.
    """
    if announcement.kind == "delta":
        return
    figures = {name: REGISTRY.get_sample_value(name, {"ranker": "sasrec"}) for name in FIGURES}
    try:
        record_version(engine, announcement, status="published", metrics=figures)
    except SQLAlchemyError as error:
        structlog.get_logger().error("version not recorded", version=announcement.name, reason=str(error))
