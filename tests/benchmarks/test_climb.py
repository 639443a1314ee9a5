from __future__ import annotations

import pytest

from benchmarks.climb import Point, Trained, figures_of, print_climb
from deploy.observe.scrape import Sample


def served(hr10: float) -> list[Sample]:
    rankers = ("sasrec", "popular", "transitions")
    return [
        *(Sample("sasrec_prequential_hr10", {"ranker": ranker}, hr10) for ranker in rankers),
        *(Sample("sasrec_prequential_ndcg10", {"ranker": ranker}, hr10 / 2) for ranker in rankers),
        Sample("sasrec_loss", {}, 0.7),
    ]


def test_the_figures_of_every_ranker_are_taken_from_what_the_trainer_serves() -> None:
    figures = figures_of(served(0.1))

    assert figures["HR@10", "popular"] == 0.1
    assert figures["NDCG@10", "sasrec"] == 0.05
    assert len(figures) == 6


def test_a_trainer_that_is_away_serves_no_figures() -> None:
    assert figures_of([]) == {}


def test_a_trainer_that_was_killed_goes_on_counting_from_where_it_was() -> None:
    trained = Trained()
    looks = [0.0, 100.0, None, 20.0, 50.0]

    totals = [
        trained.total([] if count is None else [Sample("sasrec_examples_trained_total", {}, count)]) for count in looks
    ]

    assert totals == [0.0, 100.0, 100.0, 120.0, 150.0]


def test_the_climb_is_printed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_climb([Point(0.1, figures_of(served(0.1))), Point(1.0, figures_of(served(0.2)))])

    printed = capsys.readouterr().out
    assert "10%" in printed
    assert "0.2000" in printed
