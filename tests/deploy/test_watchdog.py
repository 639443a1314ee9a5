from __future__ import annotations

from collections.abc import Collection, Mapping

from deploy.local.settings import SupervisorSettings
from deploy.local.supervisor import ProcessState
from deploy.local.watchdog import Fault, Observation, Position, Progress, Watchdog

SETTINGS = SupervisorSettings(start_seconds=30.0, silence_seconds=10.0, stall_seconds=20.0)
CLICKS_0, CLICKS_1 = ("clicks", 0), ("clicks", 1)

STREAM = ProcessState("stream", "stream", "running", pid=1, started_at_seconds=0.0, restarts=0, reason=None)
OTHER = STREAM._replace(name="stream-2", pid=2)
SCORING = STREAM._replace(name="scoring", kind="scoring", pid=3)


def seen(
    at_seconds: float,
    *,
    answered: Collection[str] = ("stream", "stream-2", "scoring"),
    stream: Mapping[Position, Progress] | None = None,
) -> Observation:
    return Observation(at_seconds, answered, None if stream is None else {"stream": stream})


def test_a_process_that_answers_and_has_nothing_to_do_is_left_alone() -> None:
    watchdog = Watchdog(SETTINGS)

    faults = [watchdog.observe([STREAM], seen(at, stream={CLICKS_0: Progress(5, 5)})) for at in range(200)]

    assert not any(faults)


def test_an_endpoint_that_stops_answering_is_a_fault_after_the_silence() -> None:
    watchdog = Watchdog(SETTINGS)
    watchdog.observe([STREAM], seen(5.0))

    soon = watchdog.observe([STREAM], seen(15.0, answered=()))
    late = watchdog.observe([STREAM], seen(15.1, answered=()))

    assert soon == []
    assert late == [Fault("stream", "its metrics endpoint has not answered for 10 s")]


def test_an_endpoint_may_take_its_time_to_answer_first() -> None:
    watchdog = Watchdog(SETTINGS)

    assert watchdog.observe([STREAM], seen(30.0, answered=())) == []
    assert watchdog.observe([STREAM], seen(30.1, answered=())) == [
        Fault("stream", "its metrics endpoint did not answer within 30 s of its start")
    ]


def test_a_new_process_under_an_old_name_gets_the_time_of_a_new_one() -> None:
    watchdog = Watchdog(SETTINGS)
    watchdog.observe([STREAM], seen(5.0))

    again = STREAM._replace(pid=9, started_at_seconds=20.0)

    assert watchdog.observe([again], seen(45.0, answered=())) == []


def test_a_process_that_waits_for_its_restart_is_not_blamed() -> None:
    watchdog = Watchdog(SETTINGS)

    assert watchdog.observe([STREAM._replace(pid=None, state="waiting")], seen(500.0, answered=())) == []


def test_lag_without_a_commit_is_a_fault_of_every_process_of_that_kind() -> None:
    watchdog = Watchdog(SETTINGS)
    states = [STREAM, OTHER, SCORING]
    watchdog.observe(states, seen(100.0, stream={CLICKS_0: Progress(5, 9)}))

    soon = watchdog.observe(states, seen(120.0, stream={CLICKS_0: Progress(5, 500)}))
    late = watchdog.observe(states, seen(120.1, stream={CLICKS_0: Progress(5, 500)}))

    reason = "its group had lag and committed nothing for 20 s"
    assert soon == []
    assert late == [Fault("stream", reason), Fault("stream-2", reason)]


def test_one_partition_that_stands_still_is_a_fault_though_the_others_move() -> None:
    watchdog = Watchdog(SETTINGS)

    faults = [
        watchdog.observe([STREAM], seen(at, stream={CLICKS_0: Progress(at, 900), CLICKS_1: Progress(5, 9)}))
        for at in range(100, 130)
    ]

    assert [bool(found) for found in faults].index(True) == 21


def test_a_commit_now_and_then_is_progress() -> None:
    watchdog = Watchdog(SETTINGS)

    faults = [watchdog.observe([STREAM], seen(at, stream={CLICKS_0: Progress(at // 15, 900)})) for at in range(300)]

    assert not any(faults)


def test_nobody_is_blamed_while_kafka_is_away_nor_at_once_when_it_is_back() -> None:
    watchdog = Watchdog(SETTINGS)
    watchdog.observe([STREAM], seen(100.0, stream={CLICKS_0: Progress(5, 9)}))

    away = watchdog.observe([STREAM], seen(130.0))
    back = watchdog.observe([STREAM], seen(131.0, stream={CLICKS_0: Progress(5, 9)}))

    assert away == back == []


def test_a_process_that_was_just_restarted_gets_its_time_to_catch_up() -> None:
    watchdog = Watchdog(SETTINGS)
    watchdog.observe([STREAM], seen(100.0, stream={CLICKS_0: Progress(5, 9)}))
    again = STREAM._replace(pid=9, started_at_seconds=118.0)

    assert watchdog.observe([again], seen(130.0, stream={CLICKS_0: Progress(5, 9)})) == []
    assert watchdog.observe([again], seen(138.1, stream={CLICKS_0: Progress(5, 9)}))
