"""The retrain's clock: kept in the database, once per time however often it was missed."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from trainer.schedule import RETRAIN_JOB, build_scheduler, cron_trigger, schedule_retrain
from trainer.settings import RetrainSettings

JOB = "datetime:date.fromisoformat"
"""Takes one text, as a job takes the database's URL."""


def test_the_job_is_in_the_database_and_a_changed_cron_replaces_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    engine = create_engine(url)
    for cron in ("17 4 * * *", "5 6 * * *"):
        scheduler = build_scheduler(engine)
        scheduler.start(paused=True)
        schedule_retrain(scheduler, RetrainSettings(cron=cron), job=JOB, url=url)
        scheduler.shutdown()

    scheduler = build_scheduler(engine)
    scheduler.start(paused=True)
    (job,) = scheduler.get_jobs()
    scheduler.shutdown()
    engine.dispose()

    assert job.id == RETRAIN_JOB
    assert job.func_ref == JOB
    assert (job.next_run_time.hour, job.next_run_time.minute) == (6, 5)
    assert (job.coalesce, job.max_instances) == (True, 1)


def test_cron_is_read_in_utc() -> None:
    now = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)

    due = cron_trigger("17 4 * * *").get_next_fire_time(None, now)

    assert due == datetime.datetime(2026, 11, 24, 4, 17, tzinfo=datetime.UTC)


def test_a_wrong_cron_is_named_by_its_setting() -> None:
    with pytest.raises(ValueError, match=r"retrain\.cron 'every night'"):
        cron_trigger("every night")
