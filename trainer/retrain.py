"""The full retrain: a new model from all sequences, brought up to now, that meets the live one at the gate.

1. A snapshot of `sequences` is read, with the exact cut of the stream that it stands for.
2. A new learner, of a new lineage, learns it in passes, within `retrain.max_seconds`.
3. It catches up from `examples`, from the cut to now, exactly like a trainer that was restarted.
4. Its checkpoint is written; nothing serves from it yet.
5. The gate judges it and the live model on the next clicks, which neither has learnt.
6. Promoted, it is announced on `models`: scoring workers and the trainer go over to it.

Killed before 6, it leaves a lineage that nobody follows. Shapes: E events, N clicks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from model.catalogue import PADDING
from model.checkpoint import ServingModel, WrittenCheckpoint, read_serving
from model.settings import ModelSettings, PolicySettings
from model.store import Place
from stream.clients import producer
from stream.events import ModelAnnouncement
from stream.examples import ClickExample, SlateExample
from stream.sequences import UserState
from stream.settings import KafkaSettings, StreamSettings
from trainer.baselines import Events
from trainer.batch import Stretch
from trainer.cut import Cut, later
from trainer.examples import ExampleReader, Patience, newest_announcement
from trainer.gate import Log, Rules, Verdict, is_question, judge
from trainer.learner import Learner
from trainer.live import read_live
from trainer.offpolicy import served_after
from trainer.passes import learn_in_passes
from trainer.publish import announce, new_lineage, write
from trainer.settings import GateSettings, RetrainSettings, TrainerSettings
from trainer.snapshot import take_snapshot

EVENTS_AT_ONCE = 10_000
POLL_SECONDS = 0.2
FULL_BATCH_SECONDS = 1.0
MOST_JUDGED = 20_000
"""Clicks, and slates, by which the gate judges; on a busy site more come while it waits."""

Tell = Callable[[str], None]


class RetrainingSettings(NamedTuple):
    """Every section that a retrain depends on."""

    kafka: KafkaSettings
    stream: StreamSettings
    model: ModelSettings
    trainer: TrainerSettings
    retrain: RetrainSettings
    gate: GateSettings
    policy: PolicySettings


class Retrained(NamedTuple):
    """How a retrain ended, and the announcement that made it live where it was promoted."""

    lineage: str
    verdict: Verdict
    announcement: ModelAnnouncement | None


def run_retrain(settings: RetrainingSettings, *, checkpoints: Place, stop: threading.Event, tell: Tell) -> Retrained:
    """From `sequences` to a verdict; `tell` hears what is going on. With `stop` set it ends early, undecided."""
    # 1.
    snapshot = take_snapshot(settings.kafka, settings.stream)
    tell(f"{len(snapshot.states):,} users")
    # 2.
    learner = Learner(settings.model, settings.trainer)
    train(learner, list(snapshot.states.values()), settings.retrain, stop=stop, tell=tell)
    # 3.
    cut = _catch_up(learner, settings, snapshot.cut, stop=stop)
    tell(f"caught up with {learner.examples_trained:,} examples")
    # 4.
    lineage = new_lineage()
    written = write(learner, cut, root=checkpoints, lineage=lineage, version=1, generation=_above(settings.kafka))
    # 5.
    verdict = _meet_the_gate(written, cut, settings, stop=stop)
    tell(f"{verdict.status}: {verdict.reason}")
    # 6.
    announcement = _promote(written, settings.kafka) if verdict.status == "promoted" else None
    return Retrained(lineage, verdict, announcement)


def train(
    learner: Learner, states: Sequence[UserState], settings: RetrainSettings, *, stop: threading.Event, tell: Tell
) -> None:
    """Passes over all users until there were enough of them, time is up or `stop` is set."""
    for events, at_ms_N in _in_time_order(learner, states):
        learner.catalogue.count_clicks(events.target_N)
        learner.prequential.learn(events, at_ms_N=at_ms_N)
    stretches = [Stretch(state.items, (1.0,) * len(state.items)) for state in states if len(state.items) > 1]
    for taught in learn_in_passes(learner, stretches, settings, clock=time.monotonic, stop=stop):
        tell(f"pass {taught.number} of {settings.epochs}: loss {taught.loss:.4f}")


def _in_time_order(learner: Learner, states: Sequence[UserState]) -> Iterator[tuple[Events, Int[np.ndarray, " N"]]]:
    """Every click of the snapshot with the item before it, as rows, and when: oldest first, popularity forgets."""
    states = [state for state in states if state.items]
    if not states:
        return
    time_E = np.concatenate([state.times_ms for state in states])
    order_E = np.argsort(time_E, kind="stable")
    _admit(learner, [item for state in states for item in state.items], order_E)
    rows = [learner.catalogue.rows_of(state.items) for state in states]
    target_E = np.concatenate(rows)
    before_E = np.concatenate([np.concatenate(([PADDING], row_N[:-1])) for row_N in rows])
    for start in range(0, len(order_E), EVENTS_AT_ONCE):
        part = order_E[start : start + EVENTS_AT_ONCE]
        yield Events(before_E[part][:, None], target_E[part]), time_E[part]


def _admit(learner: Learner, clicked: Sequence[str], order_E: Int[np.ndarray, " E"]) -> None:
    """Rows for what was clicked often enough; the last clicked counts as the most recently used."""
    in_order = [clicked[place] for place in order_E.tolist()]
    entitled = learner.entitled(in_order)
    newest_first = [item_id for item_id in dict.fromkeys(reversed(in_order)) if item_id in entitled]
    learner.admit(reversed(newest_first))


def _catch_up(learner: Learner, settings: RetrainingSettings, cut: Cut, *, stop: threading.Event) -> Cut:
    """Learns what came since the snapshot until less than one micro-batch is left; more keeps coming all the time."""
    reader = ExampleReader(settings.kafka, announcements_from={})
    reader.resume(cut)
    full = Patience(settings.trainer.max_batch, settings.trainer.max_batch, FULL_BATCH_SECONDS)
    try:
        while not stop.is_set() and reader.left() >= settings.trainer.max_batch:
            read = reader.gather(full, stop=stop)
            if read.examples:
                learner.learn(read.examples)
        return reader.cut
    finally:
        reader.close()


def _meet_the_gate(
    written: WrittenCheckpoint, cut: Cut, settings: RetrainingSettings, *, stop: threading.Event
) -> Verdict:
    live = newest_announcement(settings.kafka).announcement
    if live is None:
        return Verdict("promoted", "no model is live yet", 0, None, None)
    champion = read_live(live)
    challenger = _challenger(written)
    through_ms = max(one.manifest.trained_through_ms or 0 for one in (champion.serving, challenger))
    log = _next_events(settings, later(champion.cut, cut), through_ms=through_ms, stop=stop)
    return judge(champion.serving, challenger, log, Rules(settings.gate, settings.policy, settings.trainer))


def _challenger(written: WrittenCheckpoint) -> ServingModel:
    return read_serving(written.path, sha256=written.manifest_sha256)


def _next_events(settings: RetrainingSettings, unseen: Cut, *, through_ms: int, stop: threading.Event) -> Log:
    """What comes behind both cuts, until there is enough to judge by or the wait is over.

    Slates close later than their clicks come: where clicks come from slates, it waits for these a little longer.
    """
    gate = settings.gate
    reader = ExampleReader(settings.kafka, announcements_from={})
    reader.resume(unseen)
    clicks: list[ClickExample] = []
    slates: list[SlateExample] = []
    enough_at = time.monotonic()
    ends_at = enough_at + gate.wait_seconds
    try:
        while time.monotonic() < ends_at and not stop.is_set():
            read = reader.read(most=settings.trainer.max_batch, timeout_seconds=POLL_SECONDS)
            clicks += (one for one in read.examples if isinstance(one, ClickExample) and is_question(one))
            slates += served_after([one for one in read.examples if isinstance(one, SlateExample)], through_ms)
            if len(clicks) >= gate.min_events:
                if len(slates) >= gate.min_slates or not any(click.served for click in clicks):
                    break
                ends_at = min(ends_at, enough_at + gate.slate_seconds)
            else:
                enough_at = time.monotonic()
    finally:
        reader.close()
    return Log(clicks[:MOST_JUDGED], slates[:MOST_JUDGED])


def _promote(written: WrittenCheckpoint, kafka: KafkaSettings) -> ModelAnnouncement:
    with producer(kafka) as sender:
        return announce(sender, kafka, written, generation=_above(kafka))


def _above(kafka: KafkaSettings) -> int:
    """The rank of a lineage that takes the live one's place, whatever that one's trainer announces meanwhile."""
    live = newest_announcement(kafka).announcement
    return (live.generation if live is not None else 0) + 1
