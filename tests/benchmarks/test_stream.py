from __future__ import annotations

from benchmarks.stream import joined, rate, wall_rate
from benchmarks.stream_process import Measured


def test_workers_together_count_from_when_the_first_began_until_the_last_was_through() -> None:
    one = Measured(events=100, cpu_seconds=2.0, began=10.0, ended=14.0)
    other = Measured(events=60, cpu_seconds=2.0, began=11.0, ended=15.0)

    both = joined([one, other])

    assert both.events == 160
    assert wall_rate(both) == 32.0
    assert rate(both) == 40.0
