"""Where a trainer's life ends: at a named step of its numbered protocol, chosen in advance. For benchmarks.cut."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import model.checkpoint
import model.store
import trainer.examples
import trainer.learner
import trainer.lock
import trainer.loop
import trainer.publish
from model.optimiser import RowAdam

When = Literal["before", "after", "inside"]


class Point(NamedTuple):
    """A place in the code, and on which side of it the process is killed."""

    step: str
    owner: Any
    name: str
    when: When


POINTS: tuple[Point, ...] = (
    Point("0 before the checkpoint is resumed", trainer.loop, "resume", "before"),
    Point("0 after the checkpoint was resumed", trainer.loop, "resume", "after"),
    Point("1 polled, nothing learnt", trainer.examples.ExampleReader, "gather", "after"),
    Point("2 before the optimiser's step", RowAdam, "step", "before"),
    Point("2 after the optimiser's step", RowAdam, "step", "after"),
    Point("2 learnt", trainer.learner.Learner, "learn", "after"),
    Point("3 a dead letter sent", trainer.loop.TrainerLoop, "_set_aside", "after"),
    Point("4.1 the version is drafted", trainer.publish.Publisher, "_draft", "after"),
    Point("4.2 before the term is checked", trainer.lock.Term, "check", "before"),
    Point("4.2 the delta is written", trainer.publish, "write_delta", "after"),
    Point("4.2 inside a file of the full checkpoint", model.checkpoint, "write_synced", "inside"),
    Point("4.2 a file of the full checkpoint is written", model.checkpoint, "write_synced", "after"),
    Point("4.2 inside a delta", model.store, "write_synced", "inside"),
    Point("4.2 before the rename", pathlib.Path, "rename", "before"),
    Point("4.2 renamed, its folder not synced", pathlib.Path, "rename", "after"),
    Point("4.3 written, not announced", trainer.publish, "_send", "before"),
    Point("4.3 announced", trainer.publish, "_send", "after"),
    Point("4.4 before old ones are pruned", trainer.publish, "prune", "before"),
    Point("4.4 old ones are pruned", trainer.publish, "prune", "after"),
    Point("4 the cut is shown to the group", trainer.examples.ExampleReader, "commit", "after"),
)


def arm(point: Point, *, nth: int) -> None:
    """Kills this process with -9 when it comes to the point for the nth time."""
    real: Callable[..., Any] = getattr(point.owner, point.name)
    left = nth

    def doomed(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it stands for
        nonlocal left
        left -= 1
        if left == 0 and point.when == "inside":
            _half(*given)
        if left == 0 and point.when == "before":
            die()
        answer = real(*given, **named)
        if left == 0:
            die()
        return answer

    setattr(point.owner, point.name, doomed)


def die() -> None:
    """At once, as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _half(path: pathlib.Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        die()
