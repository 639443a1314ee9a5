"""A snapshot's cut: no example behind it is missed, and little before it is read again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stream.clients import producer
from stream.examples import Example
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import SEQUENCES
from tests.trainer.clicks import NOON_MS, clicks, send
from trainer.cut import fresh
from trainer.snapshot import SHORTEST_LOOK_BACK, take_snapshot

pytestmark = pytest.mark.broker


def fold(kafka: KafkaSettings, *, through: int) -> None:
    """One user's state that has folded in every click of partition 0 up to an offset."""
    state = UserState(
        items=("item-1",),
        times=times_of([NOON_MS]),
        clicks_applied=1,
        applied=Applied(clicks=through),
        click=(0, through, NOON_MS),
        clock_ms=NOON_MS,
    )
    with producer(kafka) as sender:
        sender.send(kafka.topic(SEQUENCES), key=b"user-1", value=encode_state(state), partition=0)
        sender.flush()


def numbers(examples: Sequence[Example]) -> list[int]:
    return [example.id.offset for example in examples]


def learnt_after(kafka: KafkaSettings, sent: Sequence[Example]) -> list[int]:
    """What a learner that goes on from the snapshot learns of all that was sent, and from where on it reads."""
    cut = take_snapshot(kafka, StreamSettings()).cut
    return numbers(fresh(sent[cut.offsets[0] :], cut.marks).examples)


def test_what_the_states_do_not_hold_is_learnt_and_little_more_is_read(kafka: KafkaSettings) -> None:
    sent = clicks(1_000)
    send(kafka, sent)
    fold(kafka, through=989)

    cut = take_snapshot(kafka, StreamSettings()).cut

    assert cut.offsets[0] == 1_000 - SHORTEST_LOOK_BACK
    assert learnt_after(kafka, sent) == list(range(990, 1_000))


def test_states_far_behind_their_examples_are_looked_for_further_back(kafka: KafkaSettings) -> None:
    sent = clicks(1_500)
    send(kafka, sent)
    fold(kafka, through=600)

    assert learnt_after(kafka, sent) == list(range(601, 1_500))


def test_examples_that_a_crash_sent_twice_hide_none_behind_the_mark(kafka: KafkaSettings) -> None:
    """Of a chunk of 900 the worker sent all, died, and had sent 300 again when its state was read."""
    once = clicks(1_000)
    sent = [*once, *once[100:400]]
    send(kafka, sent)
    fold(kafka, through=99)

    cut = take_snapshot(kafka, StreamSettings()).cut
    again = [*sent, *once[400:]]

    assert numbers(fresh(again[cut.offsets[0] :], cut.marks).examples) == list(range(100, 1_000))


def test_a_partition_without_states_is_read_as_far_back_as_a_chunk_can_be(kafka: KafkaSettings) -> None:
    send(kafka, clicks(1_000))

    cut = take_snapshot(kafka, StreamSettings(chunk_records=30, max_open_slates=1)).cut

    assert cut.offsets[0] == 1_000 - 3 * 30 * 2
