"""Where a new row begins, as the benchmark of it says."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.newcomers import Beginner, Titles, at_random, neighbours, words_of
from model.settings import ModelSettings
from trainer.settings import TrainerSettings

MOVIES = {
    "alien": words_of("Alien (1979)", "Horror|Sci-Fi"),
    "aliens": words_of("Aliens (1986)", "Horror|Sci-Fi"),
    "heidi": words_of("Heidi (1937)", "Children's|Drama"),
    "heidi2": words_of("Heidi returns (1939)", "Children's|Drama"),
}


def learner(begin: object) -> Beginner:
    """That knows three films and two that have no title, each with a row of its own."""
    made = Beginner(ModelSettings(units=8, heads=1), TrainerSettings(new_rows="random"))
    made.begin = at_random
    made.admit(["aliens", "heidi", "x", "y"])
    made.begin = begin  # type: ignore[assignment]
    return made


def added(made: Beginner, item_id: str, sequences: list[tuple[str, ...]]) -> np.ndarray:
    """What was added to the random beginning of a new row."""
    twin = learner(at_random)
    for one in (made, twin):
        one.admit([item_id], sequences=sequences)
    rows = [one.network.item_RD[one.catalogue.row_of(item_id)] for one in (made, twin)]
    difference: np.ndarray = (rows[0] - rows[1]).detach().numpy()
    return difference


def row_of(made: Beginner, item_id: str) -> torch.Tensor:
    return made.network.item_RD[made.catalogue.row_of(item_id)].detach()


def test_a_new_row_begins_at_its_neighbours_mean() -> None:
    made = learner(neighbours())
    mean_D = (row_of(made, "x") + row_of(made, "y")) / 2

    np.testing.assert_allclose(added(made, "new", [("x", "new", "y")]), mean_D, atol=1e-6)


def test_popular_neighbours_may_count_more() -> None:
    made = learner(neighbours(1.0))
    made.catalogue.count_clicks(made.catalogue.rows_of(["x"] * 3))
    mean_D = (4 * row_of(made, "x") + row_of(made, "y")) / 5

    np.testing.assert_allclose(added(made, "new", [("x", "new", "y")]), mean_D, atol=1e-3)


def test_a_new_row_begins_among_items_that_are_called_alike() -> None:
    titles = Titles(MOVIES)

    alien_D, heidi_D = (added(learner(titles.begin), item_id, []) for item_id in ("alien", "heidi2"))

    np.testing.assert_allclose(alien_D, row_of(learner(at_random), "aliens"), atol=1e-6)
    np.testing.assert_allclose(heidi_D, row_of(learner(at_random), "heidi"), atol=1e-6)


def test_an_item_without_a_title_begins_at_random() -> None:
    assert not added(learner(Titles(MOVIES).begin), "unheard of", []).any()
