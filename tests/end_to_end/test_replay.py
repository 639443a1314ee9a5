"""The benchmark of the whole system, small: a log in, every click accounted for, whatever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.replay import Run, replay
from benchmarks.system import BROKER, PROCESSES
from deploy.replay.formats import Columns, load_log, to_common
from deploy.replay.player import Pace

RATINGS = Path(__file__).parents[3] / "shared" / "data" / "ml1m_ratings.parquet"
BEGIN_MS = 1_700_000_000_000

# Both start a broker of their own; the session's tells whether one can be had at all.
pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("broker")]


def generated_log(*, clicks: int, users: int, items: int, seconds: int) -> pa.Table:
    """Users who mostly go on to the next item, in the order of time; every tenth row stands there twice."""
    rng = np.random.default_rng(7)
    user = rng.integers(users, size=clicks)
    steps = np.where(rng.random(clicks) < 0.8, 1, rng.integers(items, size=clicks))
    item = (user + np.array([steps[: at + 1][user[: at + 1] == user[at]].sum() for at in range(clicks)])) % items
    time_ms = BEGIN_MS + np.sort(rng.integers(seconds * 1_000, size=clicks))
    twice = np.sort(np.concatenate([np.arange(clicks), np.arange(0, clicks, 10)]))
    table = pa.table({"user_id": user[twice].astype(str), "item_id": item[twice].astype(str)})
    columns = Columns(user="user_id", item="item_id", time="time_ms")
    return to_common(table, columns, pa.chunked_array([time_ms[twice]]))


def assert_everything_is_where_it_belongs(run: Run) -> None:
    held = run.comparison
    assert held.differences == ()
    assert (held.equal_users, held.applied) == (held.users, held.clicks)
    assert run.users_with_recommendations == held.users
    assert run.dead_letters == 0


def test_every_click_counts_once_though_each_process_and_the_broker_are_killed(tmp_path: Path) -> None:
    rows = generated_log(clicks=3_000, users=50, items=80, seconds=30)

    run = replay(rows, tmp_path, kills="each in turn", pace=Pace(1.0))

    assert_everything_is_where_it_belongs(run)
    assert run.drive.restarted == dict.fromkeys([*PROCESSES, BROKER], True)


def test_a_slice_of_movielens_arrives_whole_and_is_learnt_from(tmp_path: Path) -> None:
    if not RATINGS.exists():
        pytest.skip("MovieLens-1M is not in shared/data beside the project; it may not be redistributed with it")
    rows = load_log(RATINGS).rows.slice(0, 20_000)

    run = replay(rows, tmp_path, pace=Pace(None))

    assert_everything_is_where_it_belongs(run)
    first, last = run.drive.points[0].figures, run.drive.points[-1].figures
    assert last["NDCG@10", "sasrec"] > first["NDCG@10", "sasrec"]
