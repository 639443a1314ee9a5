"""What was learnt before is found again only where it was learnt the same, from the same data, in the same way."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks import accuracy
from benchmarks.common import Row
from benchmarks.fitting import HALF_HOUR, Point, Run, as_dict
from benchmarks.protocol import Figures, Judged, Split
from benchmarks.recipes import RECIPES
from benchmarks.rectools_fitting import NAME as RECTOOLS
from benchmarks.rectools_fitting import rectools_settings

SPLIT = Split([np.arange(1, 6), np.arange(3, 12)], 11)
OTHER = Split([np.arange(1, 6), np.arange(4, 13)], 12)
JUDGED = Judged(Figures(0.3, 0.2), Figures(0.8, 0.6))
SECONDS = 600.0


def options(results: Path, **changed: object) -> Namespace:
    """As of a command line that says nothing but how long."""
    said = {
        "results": results,
        "found": False,
        "again": False,
        "quick": False,
        "cpu_minutes": None,
        "data": Path("that.csv"),
        "minutes": SECONDS / 60.0,
    }
    return Namespace(**(said | {"threads": torch.get_num_threads()} | changed))


def learnt(name: str, *, split: Split = SPLIT, seconds: float = SECONDS, ndcg: float = 0.2, seed: int = 1) -> Run:
    """A finished run of a recipe, as if it had been learnt."""
    recipe = RECIPES[name]
    settings = as_dict(recipe)
    settings["retrain"]["max_seconds"] = seconds
    seen = Figures(0.3, ndcg)
    point = Point(
        passes=7, cpu_seconds=seconds, wall_seconds=seconds, loss=1.0, validation=seen, validation_sampled=None
    )
    return Run(
        name=name,
        clock="wall",
        seed=seed,
        settings=settings,
        data=split.fingerprint(),
        threads=torch.get_num_threads(),
        parameters=10,
        points=(point,),
        test=Judged(seen, JUDGED.sampled),
        test_sampled=JUDGED.sampled,
        finished=True,
    )


def written(folder: Path, run: Run) -> Run:
    (folder / f"{run.name}_{run.seed}.json").write_bytes(msgspec.json.encode(run))
    return run


def found(name: str, said: Namespace, split: Split = SPLIT) -> Run | None:
    return accuracy._found(name, 1, split, said)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    run = written(tmp_path, learnt("bce"))

    assert found("bce", options(tmp_path)) == run


def test_what_was_learnt_from_other_data_is_not_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, learnt("bce"))

    assert found("bce", options(tmp_path, found=True), OTHER) is None
    assert "other data" in capsys.readouterr().err


def test_as_many_users_items_and_rows_do_not_make_it_the_same_data(tmp_path: Path) -> None:
    written(tmp_path, learnt("bce"))
    turned = Split([row_E[::-1].copy() for row_E in SPLIT.sequences], SPLIT.items)

    assert found("bce", options(tmp_path), turned) is None


def test_a_file_that_does_not_say_from_which_data_is_not_reported(tmp_path: Path) -> None:
    written(tmp_path, msgspec.structs.replace(learnt("bce"), data=None))

    assert found("bce", options(tmp_path, found=True)) is None


@pytest.mark.parametrize("changed", [{"threads": 77}, {"minutes": 5.0}])
def test_a_run_of_other_threads_or_another_length_is_learnt_anew(tmp_path: Path, changed: dict[str, float]) -> None:
    written(tmp_path, learnt("bce"))

    assert found("bce", options(tmp_path, **changed)) is None


def test_what_is_only_looked_for_may_have_learnt_for_any_time(tmp_path: Path) -> None:
    run = written(tmp_path, learnt("bce", seconds=45.0))

    assert found("bce", options(tmp_path, found=True)) == run
    assert found("bce", options(tmp_path, found=True, threads=77)) is None


def test_another_setting_makes_another_run(tmp_path: Path) -> None:
    run = learnt("bce")
    run.settings["model"]["units"] = 8
    written(tmp_path, run)

    assert found("bce", options(tmp_path)) is None


def test_over_a_small_catalogue_bpr_is_found_as_cross_entropy(tmp_path: Path) -> None:
    run = written(tmp_path, learnt("bpr"))

    assert found("cross_entropy", options(tmp_path)) == msgspec.structs.replace(run, name="cross_entropy")
    assert found("bce", options(tmp_path)) is None


def test_rectools_is_found_by_all_its_settings(tmp_path: Path) -> None:
    said = options(tmp_path)
    recipe = accuracy._bounded(RECIPES[accuracy.HEADLINE], said)
    settings = {RECTOOLS: rectools_settings(recipe, seed=1, threads=said.threads, clock="wall")}
    run = written(tmp_path, msgspec.structs.replace(learnt("bpr"), name=RECTOOLS, settings=settings))

    assert found(RECTOOLS, said) == run
    assert found(RECTOOLS, said, OTHER) is None
    assert found(RECTOOLS, options(tmp_path, minutes=1.0)) is None
    assert found(RECTOOLS, options(tmp_path, minutes=1.0, found=True)) == run
    run.settings[RECTOOLS]["units"] = 8
    written(tmp_path, run)
    assert found(RECTOOLS, said) is None


def test_an_unfinished_run_is_reported_only_where_nothing_is_learnt(tmp_path: Path) -> None:
    run = written(tmp_path, msgspec.structs.replace(learnt("bce"), finished=False))

    assert found("bce", options(tmp_path)) is None
    assert found("bce", options(tmp_path, found=True)) == run


def test_the_kept_results_are_of_the_papers_file_and_say_so() -> None:
    kept = Path("benchmarks/report/accuracy")

    for path in kept.glob("*.json"):
        run = msgspec.json.decode(path.read_bytes(), type=Run)
        assert run.data is not None
        assert run.data[:3] == accuracy.PAPERS_SPLIT


def test_seeds_are_told_by_their_mean_and_how_far_they_lie_apart() -> None:
    rows = accuracy._rows([learnt("bpr", ndcg=0.18), learnt("bpr", ndcg=0.20, seed=2)], is_papers=True)

    told = {line.what: line for line in rows}
    assert told["bpr: NDCG@10, whole catalogue"].ours == pytest.approx(0.19)
    assert told["bpr: NDCG@10, whole catalogue"].met is True
    assert [line.ours for line in rows if "2 seeds apart" in line.what][1] == pytest.approx(0.02)


def test_on_other_data_nothing_is_promised_and_nothing_published_is_beside_it() -> None:
    rows = accuracy._rows([learnt("bpr")], is_papers=False)

    assert all(line.met is None and line.baseline is None for line in rows)


def verdict_between(runs: list[Run]) -> Row:
    """Of the last row, which holds the headline against the other."""
    return accuracy._rows(runs, is_papers=True)[-1]


def test_losses_that_learnt_as_long_are_judged_beside_each_other() -> None:
    told = verdict_between([learnt("bpr", seconds=1_000.0), learnt("gbce", seconds=950.0, ndcg=0.21)])

    assert told.ratio == pytest.approx(0.20 / 0.21)
    assert told.met is True


def test_losses_of_unlike_training_stand_beside_each_other_without_a_verdict() -> None:
    told = verdict_between([learnt("bpr", seconds=2_700.0), learnt("gbce", seconds=240.0, ndcg=0.15)])

    assert told.ratio == pytest.approx(0.20 / 0.15)
    assert told.goal is None
    assert told.met is None
    assert "2,700 against 240 CPU-s" in told.what


def test_a_run_of_another_clock_is_learnt_anew_unless_it_is_only_looked_for(tmp_path: Path) -> None:
    run = written(tmp_path, msgspec.structs.replace(learnt("bce"), clock="cpu"))

    assert found("bce", options(tmp_path)) is None
    assert found("bce", options(tmp_path, minutes=None, cpu_minutes=SECONDS / 60.0)) == run
    assert found("bce", options(tmp_path, found=True)) == run


def test_without_a_word_a_run_takes_half_an_hour_by_the_clock(tmp_path: Path) -> None:
    said = options(tmp_path, minutes=None)

    assert accuracy._clock(said) == "wall"
    assert all(accuracy._bounded(recipe, said).retrain.max_seconds == HALF_HOUR["wall"] for recipe in RECIPES.values())


def told_of(run: Run) -> dict[str, Row]:
    return {line.what: line for line in accuracy._rows([run], is_papers=True)}


def test_what_was_learnt_in_half_an_hour_is_held_against_the_goals() -> None:
    rows = told_of(learnt("bpr", seconds=1_800.0))

    assert rows["bpr: NDCG@10, whole catalogue"].met is True
    assert rows["bpr: training, by the clock"].met is True


def test_of_a_longer_run_only_what_it_knew_by_then_is_held_against_the_goals() -> None:
    long = learnt("bpr", seconds=2_700.0, ndcg=0.2)
    known = Judged(Figures(0.3, 0.17), None)

    rows = told_of(msgspec.structs.replace(long, test_in_half_an_hour=known))

    assert rows["bpr: NDCG@10, whole catalogue"].goal is None
    assert rows["bpr by half an hour: NDCG@10, whole catalogue"].ours == pytest.approx(0.17)
    assert rows["bpr by half an hour: NDCG@10, whole catalogue"].met is False
    assert rows["bpr: training, by the clock"].met is False
    assert all(line.goal is None for line in told_of(long).values() if "training" not in line.what)


def test_forty_five_minutes_of_one_core_are_within_half_an_hour_of_two_but_not_by_the_clock() -> None:
    rows = told_of(msgspec.structs.replace(learnt("bpr", seconds=2_700.0), clock="cpu", threads=1))

    assert rows["bpr: NDCG@10, whole catalogue"].met is True
    assert rows["bpr: training"].met is True
    assert rows["bpr: training, by the clock"].met is False
