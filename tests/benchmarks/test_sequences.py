from __future__ import annotations

import pyarrow as pa
import pytest

from benchmarks.joins import Totals, totals_of_log
from benchmarks.sequences import Chosen, clicks_of, compare
from stream.sequences import UserState, times_of


def log(*rows: tuple[str, str, int, bool, bool]) -> pa.Table:
    names = ("user_id", "item_id", "time_ms", "shown", "clicked")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def state(*clicks: tuple[str, int], applied: int | None = None) -> UserState:
    items, times_ms = zip(*clicks, strict=True)
    return UserState(items=items, times=times_of(times_ms), clicks_applied=len(clicks) if applied is None else applied)


CLICKS = {"anna": [Chosen("1", 1_000), Chosen("2", 1_000), Chosen("3", 2_500)]}
WHOLE = state(("1", 1_000), ("2", 1_000), ("3", 2_500))


def test_an_exact_repeat_of_a_click_counts_once_and_an_unclicked_row_never() -> None:
    rows = log(
        ("anna", "1", 5, False, True),
        ("anna", "1", 5, False, True),
        ("anna", "1", 6, False, True),
        ("bo", "1", 5, True, False),
    )

    assert clicks_of(rows) == {"anna": [Chosen("1", 5), Chosen("1", 6)]}


@pytest.mark.parametrize(
    ("kept", "max_length"),
    [(WHOLE, 3), (state(("2", 1_000), ("3", 2_500), applied=3), 2)],
    ids=["whole", "the newest two"],
)
def test_a_sequence_that_holds_the_newest_clicks_in_order_is_equal(kept: UserState, max_length: int) -> None:
    held = compare(CLICKS, {"anna": kept}, max_length=max_length)

    assert (held.users, held.equal_users, held.clicks, held.applied, held.differences) == (1, 1, 3, 3, ())


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({}, "3 clicks in the log, no sequence"),
        ({"anna": state(("1", 1_000), ("2", 1_000), ("3", 2_500), applied=4)}, "4 applied"),
        ({"anna": state(("2", 1_000), ("1", 1_000), ("3", 2_500))}, "in place 0 of 3"),
        ({"anna": state(("1", 1_000), ("2", 1_000), applied=3)}, "in place 2 of 3"),
        ({"anna": state(("1", 1_000), ("2", 1_000), ("3", 2_501))}, "in place 2 of 3"),
        ({"anna": WHOLE, "nobody": state(("1", 1_000))}, "user nobody: 0 clicks in the log"),
    ],
)
def test_whatever_is_lost_doubled_moved_or_invented_is_told(states: dict[str, UserState], reason: str) -> None:
    held = compare(CLICKS, states, max_length=3)

    assert held.equal_users == 0
    assert reason in held.differences[0]


def test_totals_of_a_log_count_repeats_as_duplicates() -> None:
    rows = log(
        ("anna", "0", 1, False, True),
        ("anna", "1", 5, True, True),
        ("anna", "1", 5, True, True),
        ("anna", "2", 5, True, False),
        ("bo", "3", 5, True, False),
        ("bo", "3", 5, True, True),
    )

    assert totals_of_log(rows) == Totals(
        items_seen=5,
        items_clicked=2,
        items_unclicked=1,
        items_duplicate=2,
        items_late=0,
        clicks_applied=3,
        clicks_duplicate=1,
        clicks_late=0,
    )
