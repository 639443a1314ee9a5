"""A million users: what their states weigh, how fast a worker has them, and whether its memory stays flat.

Their states are made as the join makes them of 50 clicks, and written to `sequences` as the worker writes them; making
them by 50 million events would take an hour and end in the same bytes.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.backlog import fill, partition_of
from benchmarks.common import Goal, Row, row
from deploy.replay.events import Message
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.topics import SEQUENCES

if TYPE_CHECKING:
    from benchmarks.stream import Bench

INTERACTIONS = 50
ITEMS = 20_000
START_MS = 1_700_000_000_000
EVENTS = 60_000
MARK_BYTES = 64
MIB = 1 << 20
HOUR_MS = 3_600_000
AT_ONCE = 10_000


def states(users: int, partitions: int) -> Iterator[Message]:
    """The record on `sequences` of every user."""
    dice = np.random.default_rng(3)
    names = [f"item-{number}" for number in range(ITEMS)]
    offsets = [0] * partitions
    for first in range(0, users, AT_ONCE):
        count = min(AT_ONCE, users - first)
        items_UT = dice.integers(ITEMS, size=(count, INTERACTIONS)).tolist()
        times_UT = (
            (START_MS + dice.exponential(HOUR_MS, size=(count, INTERACTIONS)).cumsum(axis=1)).astype(int).tolist()
        )
        for number, items, times in zip(range(first, users), items_UT, times_UT, strict=False):
            key = b"user-%d" % number
            partition = partition_of(key, partitions)
            offsets[partition] += INTERACTIONS
            state = _state(
                [names[item] for item in items], times, partition, offsets[partition], dice.bytes(MARK_BYTES)
            )
            yield Message(SEQUENCES, key, encode_state(state))


def _state(items: list[str], times: list[int], partition: int, offset: int, marks: bytes) -> UserState:
    return UserState(
        items=tuple(items),
        times=times_of(times),
        clicks_applied=INTERACTIONS,
        applied=Applied(clicks=offset),
        click=(partition, offset, times[-1]),
        clock_ms=times[-1],
        event_ids=marks,
    )


def recover(bench: Bench, users: int) -> list[Row]:
    """Fills `sequences`, then starts a worker twice: with an empty disk, and with the one it left behind."""
    kafka = bench.topics()
    weighed = [0]

    def counted() -> Iterator[Message]:
        for message in states(users, kafka.partitions):
            weighed[0] += len(message.key) + len(message.value)
            yield message

    began = time.monotonic()
    fill(kafka, counted(), first_ms=int(time.time() * 1000))
    print(f"{users:,} states written in {time.monotonic() - began:.0f} s", file=sys.stderr)
    directory = bench.directory / "million"
    with bench.started("ours", kafka, directory=directory) as process:
        empty = _seconds_until(process)
        memory = [_resident(process)]
        for _ in range(2):
            bench.click(kafka, EVENTS, users)
            memory.append(_resident(process))
        process.send_signal(signal.SIGTERM)
        process.wait()
    disk = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    with bench.started("ours", kafka, directory=directory) as process:
        there = _seconds_until(process)
    return [
        row("users", users, unit=""),
        row("bytes of state and key a user", weighed[0] / users, unit="B", goal=Goal("at most", 600, of="ours")),
        row("on the worker's disk, a user", disk / users, unit="B"),
        row("empty disk: process up to reading", empty, unit="s", goal=Goal("at most", 60, of="ours")),
        row("states on disk: process up to reading", there, unit="s", goal=Goal("at most", 2, of="ours")),
        row("resident memory after the recovery", memory[0], unit="MiB"),
        row(f"resident memory {EVENTS:,} events later", memory[1], unit="MiB"),
        row(f"resident memory {2 * EVENTS:,} events later", memory[2], unit="MiB"),
    ]


def _seconds_until(process: Any) -> float:  # noqa: ANN401 - a Popen of text
    """From the line `up` to the line `ready`."""
    assert process.stdout.readline() == "up\n"
    began = time.monotonic()
    assert process.stdout.readline() == "ready\n"
    return time.monotonic() - began


def _resident(process: Any) -> float:  # noqa: ANN401 - the same
    return float(psutil.Process(process.pid).memory_info().rss / MIB)
