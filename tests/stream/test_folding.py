from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.examples import ClickExample
from stream.topics import CLICKS, RECOMMENDATIONS
from tests.rows import KAFKA, Raw, Store, raw
from tests.strategies import START_MS, Read, any_histories, interleaved

NOW_MS = START_MS + 10_000_000


@given(any_histories.flatmap(interleaved), st.data())
def test_where_batches_are_cut_changes_neither_states_nor_examples(reads: list[Read], data: st.DataObject) -> None:
    records = [raw(read) for read in reads]
    whole, cut = Store(), Store()

    at_once = whole.fold(records)
    places = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=4)))
    bounds = zip([0, *places], [*places, len(records)], strict=True)
    pieces = [cut.fold(records[first:behind]) for first, behind in bounds]

    assert cut.rows == whole.rows
    assert [example for piece in pieces for example in piece.examples] == at_once.examples


@given(any_histories.flatmap(interleaved), st.data())
def test_a_crash_before_the_states_are_written_sends_the_same_examples_again_and_one_after_it_none(
    reads: list[Read], data: st.DataObject
) -> None:
    records = [raw(read) for read in reads]
    place = data.draw(st.integers(0, len(records)))
    store = Store()
    store.fold(records[:place])
    before = store.copy()

    sent = store.fold(records[place:])
    after = store.fold(records[place:])
    again = before.fold(records)

    assert (after.examples, after.states) == ([], {})
    assert again.examples == sent.examples
    assert again.states == sent.states


def test_what_cannot_be_read_does_not_disturb_its_neighbours() -> None:
    good = Raw(
        KAFKA.topic(CLICKS),
        0,
        1,
        b"u",
        b'{"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 1700000000000}',
        NOW_MS,
    )
    bad = good._replace(offset=0, value=b"{")

    folded = Store().fold([bad, good])

    assert [len(letters) for letters in folded.dead_letters.values()] == [1]
    assert folded.reasons == {(CLICKS, "malformed"): 1}
    assert folded.outcomes == {(CLICKS, "applied"): 1}


def test_an_event_dated_ahead_of_the_clock_by_more_than_allowed_is_dead_and_an_old_one_is_not() -> None:
    def click_at(offset: int, at_ms: int) -> Raw:
        value = b'{"event_id": "%d", "user_id": "u", "item_id": "i", "timestamp_ms": %d}' % (offset, at_ms)
        return Raw(KAFKA.topic(CLICKS), 0, offset, b"u", value, NOW_MS)

    folded = Store().fold([click_at(0, 946_684_800_000), click_at(1, NOW_MS + 299_000), click_at(2, NOW_MS + 301_000)])

    assert folded.outcomes == {(CLICKS, "applied"): 2}
    assert folded.reasons == {(CLICKS, "future"): 1}


def foreign_slate(items: bytes, *, more: bytes = b"") -> Raw:
    """What another recommender publishes under its own policy name."""
    head = b'{"request_id": "r", "user_id": "u", "policy": "acme", "generated_at_ms": 1700000000000, "items": '
    return Raw(KAFKA.topic(RECOMMENDATIONS), 0, 0, b"u", head + items + more + b"}", NOW_MS)


@pytest.mark.parametrize(
    "items",
    [
        b'[{"item_id": "a", "position": -1}]',
        b'[{"item_id": "a", "position": 1000}]',
        b'[{"item_id": "a"}]',
        b'[{"item_id": "a", "position": 0}, {"item_id": "b", "position": 0}]',
        b'[{"item_id": "a", "position": 0}, {"item_id": "a", "position": 1}]',
        b'[{"item_id": "a", "position": 0, "propensity": 0, "propensity_kind": "exact"}]',
        b'[{"item_id": "a", "position": 0, "propensity": 1.5, "propensity_kind": "exact"}]',
        b'[{"item_id": "a", "position": 0, "propensity": -0.5, "propensity_kind": "estimated"}]',
        b'[{"item_id": "a", "position": 0, "propensity": 0.5}]',
        b'[{"item_id": "a", "position": 0, "propensity_kind": "exact"}]',
        b'[{"item_id": "a", "position": 0, "rival_propensities": [0.1]}], "rivals": [], "router_probability": 0',
    ],
)
def test_a_foreign_slate_that_contradicts_itself_is_a_dead_letter(items: bytes) -> None:
    folded = Store().fold([foreign_slate(items)])

    assert folded.reasons == {(RECOMMENDATIONS, "invalid"): 1}
    assert not folded.states


@pytest.mark.parametrize(
    ("item", "known", "kind"),
    [
        (b'{"item_id": "a", "position": 4}', None, "none"),
        (b'{"item_id": "a", "position": 4, "propensity": 0.25, "propensity_kind": "exact"}', 0.25, "exact"),
    ],
)
def test_a_click_on_a_foreign_slate_is_told_under_its_own_policy(item: bytes, known: float | None, kind: str) -> None:
    value = b'{"event_id": "e", "user_id": "u", "item_id": "a", "request_id": "r", "timestamp_ms": 1700000001000}'
    click = Raw(KAFKA.topic(CLICKS), 0, 0, b"u", value, NOW_MS)

    folded = Store().fold([foreign_slate(b"[" + item + b"]"), click])

    (example,) = folded.examples
    assert isinstance(example, ClickExample)
    assert example.served is not None
    assert (example.served.policy, example.served.position) == ("acme", 4)
    assert (example.served.propensity, example.served.propensity_kind) == (known, kind)


def test_what_the_rivals_would_have_shown_reaches_the_example_of_the_click() -> None:
    items = (
        b'[{"item_id": "b", "position": 0, "propensity": 0.5, "propensity_kind": "exact", '
        b'"rival_propensities": [1, 0.5]}, '
        b'{"item_id": "a", "position": 1, "propensity": 0.25, "propensity_kind": "exact", '
        b'"rival_propensities": [0, 0.125]}]'
    )
    rivals = (
        b', "router_probability": 0.5, "rivals": [{"policy": "popular", "router_probability": 0.25}, '
        b'{"policy": "transitions", "router_probability": 0.25}]'
    )
    value = b'{"event_id": "e", "user_id": "u", "item_id": "a", "request_id": "r", "timestamp_ms": 1700000001000}'

    folded = Store().fold([foreign_slate(items, more=rivals), Raw(KAFKA.topic(CLICKS), 0, 0, b"u", value, NOW_MS)])

    (example,) = folded.examples
    assert isinstance(example, ClickExample)
    assert example.served is not None
    assert example.served.router_probability == 0.5
    assert example.served.rivals == ((0.25, 0.0), (0.25, 0.125))
