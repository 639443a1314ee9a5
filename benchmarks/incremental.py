"""What does learning from the stream save? The same model, on the same clicks of a real log, in three ways.

ours: micro-batches as the trainer learns them when it is behind, of each a sample predicted before it is learnt.
retrained: each hour of event time anew from scratch, in a few passes over everything before; predicts that hour.
naive: one optimiser step for every click, on a part of the log, for its rate only.

Processor time is that of this process; predicting costs all of them the same and is part of it.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import Baseline, Goal, Row, arguments, explained, report, row
from deploy.replay.formats import load_log
from model.settings import ModelSettings
from stream.examples import ClickExample, ExampleId
from trainer.batch import Stretch
from trainer.learner import Learner
from trainer.passes import learn_in_passes
from trainer.settings import RetrainSettings, TrainerSettings

CONTEXT = 50
HOUR_MS = 3_600_000
CLICKS, QUICK_CLICKS = 8_000, 3_000
NAIVE_CLICKS, QUICK_NAIVE_CLICKS = 1_000, 300
PASSES = 5


class Outcome(NamedTuple):
    """What learning so many clicks cost, and how well the judged ones were foreseen."""

    clicks: int
    cpu_seconds: float
    ndcg10: float
    hr10: float

    @property
    def rate(self) -> float:
        """Clicks per second of processor time."""
        return self.clicks / self.cpu_seconds


class Foreseen:
    """NDCG@10 and HR@10 over clicks from some place on, from what learners have summed."""

    def __init__(self) -> None:
        self.events, self.gain, self.hits = 0, 0.0, 0.0

    def add(self, learner: Learner, *, sign: int = 1) -> None:
        """What a learner has foreseen since it began; with -1, what it had foreseen before."""
        score = learner.prequential.cumulative("sasrec")
        self.events += sign * score.events
        self.gain += sign * score.events * score.ndcg10
        self.hits += sign * score.events * score.hr10

    def outcome(self, clicks: int, cpu_seconds: float) -> Outcome:
        """With what it cost."""
        events = max(1, self.events)
        return Outcome(clicks, cpu_seconds, self.gain / events, self.hits / events)


def clicks_of(path: Path, count: int) -> list[ClickExample]:
    """The first clicks of a log, each with the history before it, as the stream worker would make them."""
    rows = load_log(path).rows.slice(0, count)
    histories: dict[str, tuple[str, ...]] = {}
    examples = []
    columns = zip(*(rows[name].to_pylist() for name in ("user_id", "item_id", "time_ms")), strict=True)
    for offset, (user, item, at_ms) in enumerate(columns):
        history = histories.get(user, ())
        examples.append(ClickExample(ExampleId("clicks", 0, offset, 0), user, history, item, at_ms, at_ms, None))
        histories[user] = (*history, item)[-CONTEXT:]
    return examples


def stream(examples: Sequence[ClickExample], *, size: int, judged_from: int, settings: TrainerSettings) -> Outcome:
    """Learns micro-batches of a size, once each, in the order of the log."""
    learner, foreseen = Learner(ModelSettings(), settings), Foreseen()
    began = time.process_time()
    for start in range(0, len(examples), size):
        if start <= judged_from < start + size:
            foreseen.add(learner, sign=-1)
        learner.learn(examples[start : start + size])
    seconds = time.process_time() - began
    foreseen.add(learner)
    return foreseen.outcome(len(examples), seconds)


def retrain_each_hour(examples: Sequence[ClickExample], *, judged_from: int, passes: int) -> tuple[Outcome, int]:
    """From scratch at every hour of event time in which anything was clicked; also how often that was."""
    foreseen, trainings = Foreseen(), 0
    began = time.process_time()
    for first, last in hours(examples):
        learner = trained(examples[:first], passes=passes)
        trainings += 1
        judged = examples[max(first, judged_from) : last]
        if judged:
            learner.foresee(judged)
            foreseen.add(learner)
    return foreseen.outcome(len(examples), time.process_time() - began), trainings


def hours(examples: Sequence[ClickExample]) -> Iterator[tuple[int, int]]:
    """Where each hour of event time begins and ends, the first one left out: nothing is known then."""
    begins = [
        place
        for place in range(1, len(examples))
        if examples[place].timestamp_ms // HOUR_MS != examples[place - 1].timestamp_ms // HOUR_MS
    ]
    yield from zip(begins, [*begins[1:], len(examples)], strict=True)


def trained(examples: Sequence[ClickExample], *, passes: int) -> Learner:
    """A new model on the sequences of all users up to now."""
    learner = Learner(ModelSettings(), TrainerSettings())
    sequences: dict[str, list[str]] = {}
    for example in examples:
        sequences.setdefault(example.user_id, []).append(example.item_id)
    learner.admit(dict.fromkeys(example.item_id for example in examples))
    stretches = [Stretch(tuple(items), (1.0,) * len(items)) for items in sequences.values() if len(items) > 1]
    settings = RetrainSettings(epochs=passes)
    for _ in learn_in_passes(learner, stretches, settings, clock=time.monotonic, stop=threading.Event()):
        pass
    return learner


def rows_of(ours: Outcome, retrained: Outcome, naive: Outcome, *, trainings: int) -> list[Row]:
    """The report."""
    by_hour = f"from scratch each hour ({trainings} times, {PASSES} passes)"
    goal = Goal("at least", 10.0)
    return [
        row("clicks per CPU second", ours.rate, unit="1/s", baseline=Baseline(by_hour, retrained.rate), goal=goal),
        row(
            "prequential NDCG@10 of the second half",
            ours.ndcg10,
            unit="",
            baseline=Baseline(by_hour, retrained.ndcg10),
            goal=Goal("at least", 1.0),
        ),
        row("prequential HR@10 of the second half", ours.hr10, unit="", baseline=Baseline(by_hour, retrained.hr10)),
        row(
            "clicks per CPU second",
            ours.rate,
            unit="1/s",
            baseline=Baseline("one step per click", naive.rate),
            goal=Goal("at least", 20.0),
        ),
    ]


def main() -> None:
    """Learns three times, reports."""
    options = _options()
    torch.set_num_threads(1)
    count = QUICK_CLICKS if options.quick else CLICKS
    examples = clicks_of(options.file, count)
    half, settings = len(examples) // 2, TrainerSettings()
    ours = stream(examples, size=settings.max_batch, judged_from=half, settings=settings)
    few = examples[: QUICK_NAIVE_CLICKS if options.quick else NAIVE_CLICKS]
    alone = settings.model_copy(update={"replay_share": 0.0})
    naive = stream(few, size=1, judged_from=0, settings=alone)
    retrained, trainings = retrain_each_hour(examples, judged_from=half, passes=PASSES)
    report("incremental", rows_of(ours, retrained, naive, trainings=trainings))


def _options() -> argparse.Namespace:
    parser = arguments("What learning from the stream saves against training anew, and against one step per click.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a log as `sasrec-stream replay` takes it")
    return parser.parse_args()


if __name__ == "__main__":
    explained(main)
