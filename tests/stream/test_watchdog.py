from __future__ import annotations

from stream.watchdog import Progress, StallClock, StallClocks

WORKING, IDLE = True, False


def test_a_worker_that_finishes_something_is_never_stalled() -> None:
    clock = StallClock()

    assert [clock.stalled_for(Progress(second, WORKING), float(second)) for second in range(3)] == [0.0, 0.0, 0.0]


def test_a_worker_for_whom_nothing_waits_is_never_stalled() -> None:
    clock = StallClock()

    assert [clock.stalled_for(Progress(7, IDLE), float(second)) for second in range(3)] == [0.0, 0.0, 0.0]


def test_a_worker_that_finishes_nothing_though_records_wait_is_stalled_since_it_last_did() -> None:
    clock = StallClock()
    clock.stalled_for(Progress(7, WORKING), 10.0)

    assert clock.stalled_for(Progress(7, WORKING), 15.0) == 5.0
    assert clock.stalled_for(Progress(8, WORKING), 16.0) == 0.0
    assert clock.stalled_for(Progress(8, WORKING), 18.0) == 2.0


def test_a_rebalance_that_takes_partitions_away_is_no_stall() -> None:
    clock = StallClock()
    clock.stalled_for(Progress(7, WORKING), 10.0)

    assert clock.stalled_for(Progress(3, WORKING), 15.0) == 0.0


def test_one_partition_that_stands_still_is_seen_while_the_others_move() -> None:
    clocks = StallClocks()
    for second in range(4):
        stalled = clocks.stalled_for({0: Progress(second, WORKING), 1: Progress(7, WORKING)}, float(second))

    assert stalled == {0: 0.0, 1: 3.0}
    assert clocks.stalled_for({0: Progress(9, WORKING)}, 4.0) == {0: 0.0}
    assert clocks.stalled_for({1: Progress(7, WORKING)}, 5.0) == {1: 0.0}, "it went to somebody else and came back"
