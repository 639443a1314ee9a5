from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from deploy.local.ledger import read_ledger
from deploy.local.summary import Ledger, Run, summarise, words
from deploy.local.supervisor import ProcessState
from deploy.observe.snapshot import Latency, Snapshot
from stream.clients import producer
from stream.dead_letters import OFFSET, PARTITION, TOPIC
from stream.sequences import Accounts, UserState, encode_state
from stream.settings import KafkaSettings
from stream.topics import CLICKS, DEAD_LETTER_SUFFIX, IMPRESSIONS, SEQUENCES

STREAM = ProcessState("stream", "stream", "running", pid=41, started_at_seconds=0.0, restarts=1, reason="killed")
LEDGER = Ledger(
    written={CLICKS: 100, IMPRESSIONS: 30},
    accounted={CLICKS: 100, IMPRESSIONS: 30},
    applied=95,
    duplicates=3,
    late=1,
    dead_lettered=1,
)
GOOD = Run(
    "time is up",
    60.0,
    Snapshot(
        processes=(STREAM,),
        recommendations=120,
        hit_rate={"sasrec": 0.31, "popular": 0.07},
        versions=frozenset({"a/1", "a/2"}),
        latency=Latency(p50_ms=12.0, p99_ms=60.0),
    ),
    produced={CLICKS: 100, IMPRESSIONS: 30, "items": 360},
    ledger=LEDGER,
)


def test_a_good_run_says_so_and_carries_every_figure() -> None:
    summary = summarise(GOOD)

    assert summary.good
    assert msgspec.json.decode(msgspec.json.encode(summary)) == {
        "exit_reason": "time is up",
        "good": True,
        "faults": [],
        "seconds": 60.0,
        "produced": {"clicks": 100, "impressions": 30, "items": 360},
        "applied": 95,
        "duplicates": 3,
        "late": 1,
        "dead_lettered": 1,
        "lost": 0,
        "doubled": 0,
        "recommendations": 120,
        "model_versions": 2,
        "processes_alive": ["stream"],
        "processes_dead": [],
        "restarts": 1,
        "hr10": {"sasrec": 0.31, "popular": 0.07},
        "latency_ms": {"p50": 12.0, "p99": 60.0},
    }


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (GOOD._replace(exit_reason="interrupted"), "interrupted before its time"),
        (GOOD._replace(last=replace(GOOD.last, versions=frozenset({"a/1"}))), "of 1 model versions"),
        (
            GOOD._replace(last=replace(GOOD.last, processes=(STREAM._replace(pid=None),))),
            "not alive at the end: stream",
        ),
        (GOOD._replace(ledger=None), "nothing can be said about losses"),
        (GOOD._replace(produced={CLICKS: 102}), "2 messages were lost"),
        (GOOD._replace(ledger=msgspec.structs.replace(LEDGER, accounted={CLICKS: 97, IMPRESSIONS: 29})), "4 messages"),
        (GOOD._replace(ledger=msgspec.structs.replace(LEDGER, accounted={CLICKS: 101, IMPRESSIONS: 30})), "1 messages"),
    ],
)
def test_whatever_makes_a_run_bad_is_named(run: Run, fault: str) -> None:
    summary = summarise(run)

    assert not summary.good
    assert fault in summary.faults[0]
    assert fault in words(summary)


def test_without_an_audience_nobody_expects_models() -> None:
    assert summarise(GOOD._replace(produced=None, last=replace(GOOD.last, versions=frozenset()))).good


def test_stopping_a_run_without_an_end_is_no_fault() -> None:
    summary = summarise(GOOD._replace(exit_reason="stopped", produced=None, ledger=None))

    assert "verdict" not in words(summary)


def test_losses_of_one_topic_are_not_made_up_by_the_other() -> None:
    ledger = msgspec.structs.replace(LEDGER, accounted={CLICKS: 98, IMPRESSIONS: 32})

    assert (ledger.lost({}), ledger.doubled()) == (2, 2)


def test_only_what_came_in_this_run_is_judged() -> None:
    later = msgspec.structs.replace(
        LEDGER, written={CLICKS: 150, IMPRESSIONS: 30}, accounted={CLICKS: 149, IMPRESSIONS: 30}, applied=144
    )

    since = later.since(LEDGER)

    assert since.written == {CLICKS: 50, IMPRESSIONS: 0}
    assert since.lost({CLICKS: 50}) == 1
    assert since.applied == 49


@pytest.mark.broker
def test_the_ledger_counts_messages_states_and_dead_letters(kafka: KafkaSettings) -> None:
    older = UserState(clicks_applied=1)
    newer = UserState(clicks_applied=2, accounts=Accounts(clicks_duplicate=1, clicks_late=1, impressions=2))
    where = [(TOPIC, kafka.topic(CLICKS).encode()), (PARTITION, b"0"), (OFFSET, b"7")]
    with producer(kafka) as sent:
        for number in range(6):
            sent.send(kafka.topic(CLICKS), key=f"user-{number}".encode(), value=b"{}")
        for state in (older, newer):
            sent.send(kafka.topic(SEQUENCES), key=b"user-1", value=encode_state(state))
        for _ in range(2):
            sent.send(kafka.topic(CLICKS + DEAD_LETTER_SUFFIX), key=b"user-1", value=b"?", headers=where)
        sent.flush()

    ledger = read_ledger(kafka)

    assert ledger == Ledger(
        written={CLICKS: 6, IMPRESSIONS: 0},
        accounted={CLICKS: 5, IMPRESSIONS: 2},
        applied=2,
        duplicates=1,
        late=1,
        dead_lettered=1,
    )
    assert ledger.lost({}) == 1
