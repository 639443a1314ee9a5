"""The protocol of the continual benchmark, on weeks small enough to see through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.continual import Cycle, apart, either_way, rows_of
from benchmarks.weeks import Click, Score, examined, questions_of, read_weeks, week_of
from model.settings import ModelSettings
from trainer.batch import Stretch
from trainer.learner import Learner
from trainer.settings import TrainerSettings


def test_a_file_becomes_weeks_of_sessions_in_the_order_of_arrival(tmp_path: Path) -> None:
    file = tmp_path / "weeks.parquet"
    pq.write_table(pa.table({"period": [0, 0, 0, 1], "session": [7, 8, 7, 9], "item": [1, 2, 3, 1]}), file)

    first, second = read_weeks(file)

    assert [session.items for session in first.sessions] == [("1", "3"), ("2",)]
    assert first.targets == 1
    assert second.clicks == [Click("9", "1")]


def test_a_file_of_one_period_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weeks.parquet"
    pq.write_table(pa.table({"period": [0], "session": [7], "item": [1]}), file)

    with pytest.raises(ValueError, match="one period"):
        read_weeks(file)


def test_items_that_nobody_knew_are_no_questions() -> None:
    week = week_of([Click("s", "a"), Click("s", "new"), Click("s", "b"), Click("t", "new"), Click("t", "a")])

    asked = questions_of(week, {"a", "b"})

    assert [session.items for session in asked.sessions] == [("a", "b"), ("a",)]
    assert asked.targets == 1


def test_every_click_but_a_sessions_first_is_ranked_among_all_items_what_the_session_has_included() -> None:
    learner = Learner(ModelSettings(max_length=4, units=2, blocks=0, dropout=0.0), TrainerSettings())
    learner.admit(str(number) for number in range(30))
    with torch.no_grad():
        learner.network.position_TD.zero_()
        learner.network.item_RD.zero_()
        # Whoever has any item is offered "0" first, then "1", and so on: each scores a little less.
        learner.network.item_RD[1:31, 0] = torch.linspace(2.0, 1.0, 30)
        learner.network.final_norm = torch.nn.Identity()

    score = examined(learner, week_of([Click("s", "5"), Click("s", "0"), Click("s", "1"), Click("s", "25")]))

    assert score.questions == 3
    assert score.recall20 == pytest.approx(100 * 2 / 3)
    assert score.mrr20 == pytest.approx(100 * (1 + 1 / 2) / 3)


def test_an_arm_is_set_beside_the_joint_one_over_the_cycles_that_both_went_through() -> None:
    seen = [
        *(Cycle("replay", week, Score(40.0 + week, 15.0, 100), 10.0) for week in range(4)),
        *(Cycle("joint", week, Score(42.0, 16.0, 100), 100.0) for week in (0, 3)),
    ]

    rows = {line.what: line for line in rows_of(seen, cycles=4)}

    assert rows["replay, cycles 0-3: Recall@20"].ours == pytest.approx(41.5)
    assert rows["replay, cycles 3: Recall@20"].ratio == pytest.approx(43.0 / 42.0)
    assert rows["replay, cycles 3: learning"].ratio == pytest.approx(0.1)
    assert rows["replay, cycles 3: learning"].met


def test_weeks_by_which_settings_were_chosen_are_told_from_the_others() -> None:
    seen = [Cycle("replay", week, Score(40.0 + week, 15.0, 100), 10.0) for week in range(6)]

    rows = {line.what: line for line in rows_of(seen, cycles=16)}

    assert rows["replay, cycles 0-5: Recall@20"].ours == pytest.approx(42.5)
    assert rows["replay, cycles 4-5, by which nothing was chosen: Recall@20"].ours == pytest.approx(44.5)


def test_apart_each_click_stands_at_the_end_of_a_sequence_of_its_own() -> None:
    found = apart([Stretch(("a", "b", "c"), (1.0, 1.0, 0.5)), Stretch(("d", "e"), (1.0, 1.0))])

    assert found == [
        Stretch(("a", "b"), (1.0,)),
        Stretch(("a", "b", "c"), (0.5,)),
        Stretch(("d", "e"), (1.0,)),
    ]


@pytest.mark.parametrize(("backwards", "items"), [(0.0, ("a", "b", "c")), (1.0, ("c", "b", "a"))])
def test_a_session_is_read_from_either_end(backwards: float, items: tuple[str, ...]) -> None:
    (found,) = either_way(
        [Stretch(("a", "b", "c"), (1.0, 1.0, 1.0))], backwards=backwards, rng=np.random.default_rng(1)
    )

    assert found.items == items
