"""The baselines against a reading of their definitions, one event at a time."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.catalogue import PADDING
from trainer.baselines import Events, Popular, Transitions

ROWS = 40
HISTORY = 4
BEST = 10


@st.composite
def batches(draw: st.DrawFn) -> list[Events]:
    event = st.lists(st.integers(1, ROWS - 1), min_size=1, max_size=HISTORY + 1)
    made = []
    for histories in draw(st.lists(st.lists(event, min_size=1, max_size=12), min_size=1, max_size=4)):
        asked = [items for items in histories if items[-1] not in items[:-1]]
        history_NT = np.full((len(asked), HISTORY), PADDING)
        for row, items in zip(history_NT, asked, strict=True):
            row[HISTORY - len(items) + 1 :] = items[:-1]
        made.append(Events(history_NT, np.array([items[-1] for items in asked], dtype=np.int64)))
    return made


def rank(scores: dict[int, tuple[float, float]], had: set[int], target: int) -> int:
    others = (row for row in range(1, ROWS) if row != target and row not in had)
    return sum(scores[row] >= scores[target] for row in others)


def is_best(rows: list[int], scores: dict[int, tuple[float, float]], had: set[int]) -> bool:
    """Whether these are the best of what has a score, whichever of equals; filled up with padding."""
    expected = sorted((scores[row] for row in range(1, ROWS) if any(scores[row]) and row not in had), reverse=True)
    found = [row for row in rows if row != PADDING]
    is_allowed = len(set(found)) == len(found) and not had & set(found) and len(rows) == BEST
    return is_allowed and [scores[row] for row in found] == expected[:BEST]


def decayed(count_R: np.ndarray, events: Events) -> np.ndarray:
    after_R: np.ndarray = count_R * 0.5 ** (len(events.target_N) / 5.0)
    np.add.at(after_R, events.target_N, 1.0)
    return after_R


@given(batches=batches())
def test_popularity_ranks_what_the_user_does_not_have_by_its_recent_clicks(batches: list[Events]) -> None:
    count_R = np.zeros(ROWS)

    for events in batches:
        scores = {row: (float(count_R[row]), 0.0) for row in range(ROWS)}
        expected = [rank(scores, set(had), target) for had, target in zip(*map(np.ndarray.tolist, events), strict=True)]
        assert Popular(count_R).ranks(events).tolist() == expected
        for rows, had in zip(Popular(count_R).best(events, k=BEST).tolist(), events.history_NT.tolist(), strict=True):
            assert is_best(rows, scores, set(had))
        count_R = decayed(count_R, events)


@given(batches=batches())
def test_transitions_rank_by_what_followed_the_last_item_and_then_by_popularity(batches: list[Events]) -> None:
    count_R, transitions = np.zeros(ROWS), Transitions(max_pairs=10_000, capacity=ROWS)
    followed: defaultdict[int, Counter[int]] = defaultdict(Counter)

    for events in batches:
        expected = []
        found, popular = transitions.new_followers(events), Popular(count_R)
        best_NK = transitions.best(found=found, popular=popular, else_NK=popular.best(events, k=BEST))
        for had, target, rows in zip(*map(np.ndarray.tolist, (*events, best_NK)), strict=True):
            scores = {row: (float(followed[had[-1]][row]), float(count_R[row])) for row in range(ROWS)}
            expected.append(rank(scores, set(had), target))
            assert is_best(rows, scores, set(had))
        assert transitions.ranks(events, found=found, popular=popular).tolist() == expected
        count_R = decayed(count_R, events)
        transitions.learn(events)
        for last, target in zip(events.last_N.tolist(), events.target_N.tolist(), strict=True):
            followed[last].update([target] if last != PADDING else [])


def test_past_the_bound_pairs_seen_once_are_forgotten() -> None:
    transitions = Transitions(max_pairs=3, capacity=ROWS)

    transitions.learn(events((1, 5), (1, 5), (1, 6), (2, 7), (2, 8)))

    arrays = transitions.arrays()
    assert (arrays["next"].tolist(), arrays["count"].tolist()) == ([5], [1])
    assert transitions.pairs == 1


def test_transitions_go_on_from_their_arrays() -> None:
    transitions = Transitions(max_pairs=100, capacity=ROWS)
    transitions.learn(events((1, 5), (1, 6), (3, 5)))

    resumed = Transitions.from_arrays(transitions.arrays(), max_pairs=100)
    for each in (transitions, resumed):
        each.learn(events((1, 6), (4, 9)))

    for name, array in transitions.arrays().items():
        assert resumed.arrays()[name].tolist() == array.tolist()


def test_a_row_given_to_another_item_forgets_what_followed_it() -> None:
    transitions = Transitions(max_pairs=100, capacity=ROWS)
    transitions.learn(events((1, 5), (2, 6)))

    transitions.forget(np.array([1]))

    assert transitions.arrays()["next"].tolist() == [6]
    assert transitions.pairs == 1


def test_what_led_to_an_item_that_is_gone_never_counts_for_the_one_in_its_row() -> None:
    transitions = Transitions(max_pairs=4, capacity=ROWS)
    transitions.learn(events((1, 5), (1, 5), (1, 6), (1, 6)))

    transitions.forget(np.array([5]))

    assert transitions.followers(np.array([1])).row_S.tolist() == [6]
    transitions.learn(events((1, 5)))
    for each in (transitions, Transitions.from_arrays(transitions.arrays(), max_pairs=4)):
        found = each.followers(np.array([1]))
        assert dict(zip(found.row_S.tolist(), found.count_S.tolist(), strict=True)) == {6: 2.0, 5: 1.0}
    transitions.learn(events((2, 7), (2, 8)))
    assert transitions.arrays()["next"].tolist() == [6]


def test_arrays_of_before_rows_were_numbered_are_read() -> None:
    transitions = Transitions(max_pairs=100, capacity=ROWS)
    transitions.learn(events((1, 5), (1, 6), (3, 5)))
    arrays = transitions.arrays()
    del arrays["held"]
    arrays["next"] = arrays["next"].astype(np.int32)

    read = Transitions.from_arrays(arrays, max_pairs=100)

    assert read.followers(np.array([1])).row_S.tolist() == [5, 6]


def test_an_item_without_a_row_leads_nowhere() -> None:
    transitions = Transitions(max_pairs=100, capacity=ROWS)

    transitions.learn(events((1, PADDING), (PADDING, 1)))

    assert transitions.pairs == 0


def events(*steps: tuple[int, int]) -> Events:
    return Events(np.array([[last] for last, _ in steps]), np.array([target for _, target in steps]))
