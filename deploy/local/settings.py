"""Settings of `sasrec-stream up`: the supervisor and the simulated audience of the demo."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.settings import Section


class SupervisorSettings(Section):
    """What `sasrec-stream up` starts on this machine, and when it restarts it."""

    stream_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Stream workers; more than `kafka.partitions` only wait."""
    scoring_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Scoring workers; more than `kafka.partitions` only wait."""
    learning_niceness: Annotated[int, Field(ge=0, le=19)] = 5
    """By how much the trainer gives way to the processes that answer, where they share a machine: more makes answers
    faster and weights staler. At 0 it has the same share of the processor as each of them; whatever it is, it does not
    interrupt them.
    """
    retraining_niceness: Annotated[int, Field(ge=0, le=19)] = 5
    """By how much the scheduler and the full retrains that it starts give way to all others."""
    first_back_off_seconds: Annotated[float, Field(gt=0.0)] = 0.5
    """Wait before a process that died is started again, in seconds; doubled each time it dies again."""
    longest_back_off_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """Longest such wait, in seconds."""
    good_while_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """A process that ran so long, in seconds, starts with the first wait again when it dies."""
    stop_seconds: Annotated[float, Field(gt=0.0)] = 9.0
    """How long everything may take to stop, in seconds: first the applications, then Kafka. What has not stopped by
    then is killed, and that is said.
    """
    catch_up_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """How long `up --seconds` waits at its end for the outcome of every message, in seconds."""
    start_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """How long a new process may take until its metrics endpoint answers, in seconds; then it is restarted."""
    silence_seconds: Annotated[float, Field(gt=0.0)] = 20.0
    """A process whose metrics endpoint does not answer for so long, in seconds, is restarted."""
    stall_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """A consumer group that has lag and commits nothing for so long, in seconds, has its processes restarted."""


class AudienceSettings(Section):
    """The simulated audience: 240 titles in twelve categories, users with tastes, series watched part by part."""

    users: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """How many there are."""
    organic_clicks_per_second: Annotated[float, Field(ge=0.0, le=100_000.0)] = 40.0
    """Clicks on items that nobody recommended."""
    looks_per_second: Annotated[float, Field(ge=0.0, le=100_000.0)] = 15.0
    """Slates that somebody looks at, and clicks where an item pleases; the others are never seen."""
    requests_per_second: Annotated[float, Field(ge=0.0, le=100_000.0)] = 2.0
    """Pages opened without a click."""
    position_bias: Annotated[float, Field(ge=0.0, le=5.0)] = 0.5
    """The truth about positions: slot k is looked at with probability 1 / (k + 1) ** position_bias."""
    seed: int = 1
    """Of the world and of all that its users do."""
