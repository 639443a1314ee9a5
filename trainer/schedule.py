"""When the full retrain runs: APScheduler with its jobs in the registry's database, so that a restart forgets none."""

from __future__ import annotations

import datetime

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import Engine

from trainer.settings import RetrainSettings

RETRAIN_JOB = "full-retrain"
MISFIRE_GRACE_SECONDS = 3_600
"""A retrain that was due while the scheduler was down still runs when it is back within this time."""


def build_scheduler(engine: Engine) -> BackgroundScheduler:
    """A scheduler, not started, whose jobs live in that database; who opened it closes it after the shutdown.

    However often a job was missed, it runs once, and never twice at a time.
    """
    # By URL the job store would close its connections at the shutdown, and the scheduler's thread look once more.
    return BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(engine=engine)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE_SECONDS},
        timezone=datetime.UTC,
    )


def schedule_retrain(scheduler: BackgroundScheduler, settings: RetrainSettings, *, job: str, url: str) -> None:
    """Has `job` ("package.module:function", called with the database URL) run by the cron setting.

    Called at every start: the job in the database is replaced, so that a changed setting counts.

    Raises:
        ValueError: retrain.cron is no cron expression.
    """
    scheduler.add_job(job, cron_trigger(settings.cron), args=[url], id=RETRAIN_JOB, replace_existing=True)


def cron_trigger(cron: str) -> CronTrigger:
    """Reads a five-field cron expression in UTC.

    Raises:
        ValueError: it is none.
    """
    try:
        return CronTrigger.from_crontab(cron, timezone=datetime.UTC)
    except ValueError as error:
        raise ValueError(f"retrain.cron {cron!r}: {error}; write five fields, such as 17 4 * * *") from error
