from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.client import Arrived, Client
from benchmarks.latency import Seen, interleaved, measured, seen_of
from deploy.replay.events import Message
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.settings import KafkaSettings
from stream.topics import CLICKS, RECOMMENDATIONS


class Record(NamedTuple):
    """Of `sequences`, as far as it is looked at."""

    value: bytes | None
    timestamp: int


def test_users_are_interleaved_and_each_keeps_its_own_order() -> None:
    users = [f"u{n // 50}" for n in range(500)]
    rows = pa.table({"user_id": users, "item_id": [f"i{n}" for n in range(500)], "time_ms": list(range(500))})

    mixed = interleaved(rows, end_ms=10_000)

    assert sorted(mixed["item_id"].to_pylist()) == sorted(rows["item_id"].to_pylist())
    assert mixed["time_ms"].to_pylist() == list(range(9_500, 10_000))
    assert len(set(mixed["user_id"].to_pylist()[:50])) > 5
    for user in set(users):
        items = [
            item
            for item, of in zip(mixed["item_id"].to_pylist(), mixed["user_id"].to_pylist(), strict=True)
            if of == user
        ]
        assert items == sorted(items, key=lambda item: int(item[1:]))


def test_hops_add_up_and_clicks_without_a_slate_of_their_own_are_left_out() -> None:
    first, second, third = (0, 1), (0, 2), (1, 1)
    seen = Seen(
        sent={first: 100.0, second: 200.0, third: 300.0},
        read_back={first: 101.0, second: 203.0, third: 304.0},
        in_sequence={first: 110.0, third: 320.0},
        ranked={first: 115.0, third: 330.0},
        answered={first: 121.0, third: 350.0},
        versions={"a/1", "a/2"},
    )

    found = measured(seen, rate=10, sent=3, cores={})

    assert found.answered == 2
    assert found.versions == 2
    assert found.hops["click -> slate"].tolist() == [21.0, 50.0]
    parts = [took for hop, took in found.hops.items() if hop != "click -> slate"]
    assert np.sum(parts, axis=0).tolist() == [21.0, 50.0]
    assert found.read_back.tolist() == [1.0, 3.0, 4.0]
    assert found.is_sustained


def test_what_came_back_is_filed_under_the_click_that_caused_it_and_the_first_slate_counts() -> None:
    slate = b'{"cause":{"topic":"%s","partition":0,"offset":7},"generated_at_ms":%d,"model_version":"a/1"}'
    arrived = [
        Arrived(CLICKS, 0, 7, b"a click", 5.0),
        Arrived(RECOMMENDATIONS, 0, 1, slate % (b"clicks", 21), 30.0),
        Arrived(RECOMMENDATIONS, 0, 2, slate % (b"clicks", 41), 50.0),
        Arrived(RECOMMENDATIONS, 0, 3, slate % (b"requests", 61), 70.0),
    ]
    state = UserState(items=("i",), times=times_of([1]), applied=Applied(clicks=7), click=(0, 7, 4))
    sequences = [Record(encode_state(state), 11), Record(None, 12)]

    seen = seen_of(arrived, sent={(0, 7): 3.0}, sequences=sequences)

    assert seen.read_back == {(0, 7): 5.0}
    assert seen.in_sequence == {(0, 7): 11}
    assert seen.ranked == {(0, 7): 21}
    assert seen.answered == {(0, 7): 30.0}


@pytest.mark.broker
@pytest.mark.parametrize("every_ms", [1.0, 50.0])
def test_the_client_reads_what_it_sends_and_counts_from_when_a_message_was_due(
    kafka: KafkaSettings, every_ms: float
) -> None:
    messages = [Message(CLICKS, f"u{number}".encode(), str(number).encode()) for number in range(20)]

    with Client(kafka, (CLICKS,), every_ms=every_ms) as client:
        due = client.send(client.addressed(messages), rate=200)
        while len(client.arrived) < len(messages):
            time.sleep(0.01)

    times_ms = sorted(due.values())
    assert np.allclose(np.diff(times_ms), 5.0, atol=0.01)
    assert {(one.partition, one.offset) for one in client.arrived} == due.keys()
    assert sorted(int(one.value or b"") for one in client.arrived) == list(range(20))
    for one in client.arrived:
        assert one.at_ms >= due[one.partition, one.offset]
