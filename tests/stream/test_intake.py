from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stream.chunks import Chunk
from stream.intake import Batch, Intake, Span

SLATES, CLICKS = "slates", "clicks"
NOTHING_FOLDED = {SLATES: -1, CLICKS: -1}


class Record(NamedTuple):
    topic: str
    offset: int
    timestamp: int


class Message(NamedTuple):
    topic: str
    value: Chunk[Any]

    @property
    def tp(self) -> TP:
        return TP(self.topic, 0)


def message(topic: str, first: int, *timestamps: int) -> Message:
    records = [Record(topic, first + nth, timestamp) for nth, timestamp in enumerate(timestamps)]
    return Message(topic, Chunk(records, first))


def intake(*, folded: Mapping[str, int] = NOTHING_FOLDED, **owed: Span) -> Intake:
    return Intake(0, [SLATES, CLICKS], owed=owed, folded=folded)


def nothing_more(_tp: TP, _read: int | None) -> bool:
    return False


def more_slates(tp: TP, _read: int | None) -> bool:
    return bool(tp.topic == SLATES)


def places(batch: Batch | None) -> list[tuple[str, int]]:
    assert batch is not None
    return [(record.topic, record.offset) for record in batch.records]


def test_no_more_records_are_taken_than_are_wanted_and_the_rest_comes_next() -> None:
    queue = intake()
    queue.put(message(CLICKS, 0, 10, 20), finished=0)
    queue.put(message(SLATES, 5, 10, 30), finished=5)

    batch = queue.take(nothing_more, most=3)

    assert batch is not None
    assert places(batch) == [(SLATES, 5), (CLICKS, 0), (CLICKS, 1)]
    assert [ended.topic for ended in batch.ended] == [CLICKS]
    assert places(queue.take(nothing_more, most=3)) == [(SLATES, 6)]


def test_topics_are_merged_in_the_order_of_their_timestamps_and_slates_come_first_among_equals() -> None:
    queue = intake()
    queue.put(message(CLICKS, 0, 10, 20), finished=0)
    queue.put(message(SLATES, 5, 10, 30), finished=5)

    assert places(queue.take(nothing_more)) == [(SLATES, 5), (CLICKS, 0), (CLICKS, 1), (SLATES, 6)]


def test_records_wait_while_another_topic_may_still_bring_older_ones() -> None:
    queue = intake()
    queue.put(message(CLICKS, 0, 10, 20), finished=0)

    assert queue.take(more_slates) is None
    assert places(queue.take(nothing_more)) == [(CLICKS, 0), (CLICKS, 1)]


def test_only_records_up_to_where_the_slower_topic_has_come_are_taken() -> None:
    queue = intake()
    clicks = message(CLICKS, 0, 10, 20, 30)
    queue.put(clicks, finished=0)
    queue.put(message(SLATES, 0, 15, 20, 25), finished=0)

    batch = queue.take(more_slates)

    assert places(batch) == [(CLICKS, 0), (SLATES, 0), (SLATES, 1), (CLICKS, 1), (SLATES, 2)]
    assert batch is not None
    assert clicks in batch.messages
    assert clicks not in batch.ended
    assert queue.take(more_slates) is None
    assert queue.lacking(more_slates) == [TP(SLATES, 0)]
    rest = queue.take(nothing_more)
    assert places(rest) == [(CLICKS, 2)]
    assert rest is not None
    assert clicks in rest.ended


def test_of_one_millisecond_the_order_is_the_same_wherever_a_topic_was_cut() -> None:
    queue = intake()
    queue.put(message(CLICKS, 0, 10, 20), finished=0)
    queue.put(message(SLATES, 0, 5, 10), finished=0)

    assert places(queue.take(more_slates)) == [(SLATES, 0), (SLATES, 1)]
    queue.put(message(SLATES, 2, 10, 30), finished=0)
    assert places(queue.take(nothing_more)) == [(SLATES, 2), (CLICKS, 0), (CLICKS, 1), (SLATES, 3)]


def test_what_the_states_have_is_left_out() -> None:
    queue = intake(folded={CLICKS: 2, SLATES: -1})

    assert not queue.put(message(CLICKS, 0, 1, 2), finished=0)
    assert queue.put(message(CLICKS, 2, 3, 4), finished=0)

    assert places(queue.take(nothing_more)) == [(CLICKS, 3)]


def test_a_chunk_that_does_not_follow_on_the_former_is_refused() -> None:
    queue = intake()
    queue.put(message(CLICKS, 0, 10), finished=0)

    with pytest.raises(ValueError, match="jumped from 1 to 2"):
        queue.put(message(CLICKS, 2, 10), finished=0)


def test_the_first_chunk_must_follow_on_what_is_finished_and_may_overlap_with_it() -> None:
    intake().put(message(CLICKS, 3, 10), finished=5)
    with pytest.raises(ValueError, match="jumped from 5 to 6"):
        intake().put(message(CLICKS, 6, 10), finished=5)


def test_what_is_owed_comes_first_exactly_as_it_was_cut() -> None:
    queue = intake(clicks=Span(1, 3), slates=Span(0, 1), folded={CLICKS: 0, SLATES: -1})
    queue.put(message(CLICKS, 0, 1, 2, 3, 4), finished=0)
    assert queue.take(nothing_more) is None
    queue.put(message(SLATES, 0, 9, 10), finished=0)

    owed, rest = (queue.take(nothing_more) for _ in range(2))

    assert places(owed) == [(CLICKS, 1), (CLICKS, 2), (SLATES, 0)]
    assert owed is not None
    assert owed.spans == {CLICKS: Span(1, 3), SLATES: Span(0, 1)}
    assert places(rest) == [(CLICKS, 3), (SLATES, 1)]


def test_what_is_owed_and_folded_in_meanwhile_holds_up_nothing() -> None:
    queue = intake(clicks=Span(0, 2), folded={CLICKS: 1, SLATES: -1})
    queue.put(message(CLICKS, 0, 1, 2), finished=0)
    queue.put(message(SLATES, 0, 3), finished=0)

    assert places(queue.take(nothing_more)) == [(SLATES, 0)]


@given(st.data())
def test_every_record_is_taken_once_in_the_order_of_its_topic_and_every_message_ends(data: st.DataObject) -> None:
    queue = intake()
    taken, ended, sent = [], [], []
    behind = {SLATES: 0, CLICKS: 0}

    for _ in range(data.draw(st.integers(0, 6))):
        topic = data.draw(st.sampled_from([SLATES, CLICKS]))
        stamps = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
        sent.append(message(topic, behind[topic], *stamps))
        behind[topic] += len(stamps)
        queue.put(sent[-1], finished=0)
        may_bring_more = data.draw(st.sampled_from([nothing_more, more_slates]))
        while batch := queue.take(may_bring_more):
            taken += batch.records
            ended += batch.ended
    while batch := queue.take(nothing_more):
        taken += batch.records
        ended += batch.ended

    for topic in (SLATES, CLICKS):
        assert [record.offset for record in taken if record.topic == topic] == list(range(behind[topic]))
    assert sorted(map(id, ended)) == sorted(map(id, sent))
