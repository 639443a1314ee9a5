"""The trainer: a model that learns every few seconds and can be killed at any instant.

The numbered cut:

1. Examples are polled; repeats of what was learnt are dropped by their ids.
2. They are learnt as one micro-batch: predicted, weighed, stepped (trainer/learner.py).
3. What cannot be read or learnt goes to the dead letters.
4. When it is time, the dead letters are acknowledged, and the learner is published with the cut behind 1: as a delta,
   and now and then as a full checkpoint, from which alone a trainer resumes (publish.py).

Where losses spike again and again, nothing more is published; the learner goes back to the last good checkpoint and
reads again what came after it, and what spikes then never reaches the weights (`_watch`, trainer/guard.py).

Killed anywhere, the next trainer resumes from the newest whole full checkpoint: what was learnt after it is forgotten
with the weights that had learnt it, and read and learnt again. Meanwhile readers serve what deltas had published.
"""

from __future__ import annotations

import contextlib
import threading
import time

import structlog
import torch
from kafka import KafkaProducer
from kafka.consumer.fetcher import ConsumerRecord

from model.checkpoint import BrokenCheckpointError, WrittenCheckpoint, newest_checkpoint, verify
from model.native.functions import kernels
from model.settings import ModelSettings
from model.store import Place, absolute
from stream.clients import producer
from stream.dead_letters import UnreadableError, dead_letter
from stream.events import ModelAnnouncement
from stream.garbage import collect_rarely
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX
from trainer import metrics
from trainer.crew import crew_of
from trainer.examples import Announced, ExampleReader, Patience, Read, newest_announcement
from trainer.follow import follow
from trainer.guard import Run
from trainer.learner import Learnt
from trainer.lock import only_trainer
from trainer.orders import Begin, BeginAnew, Compare, Learn, Order, Resume, Stop, encode_order
from trainer.probation import Lead, Probation, lead_of
from trainer.publish import FIRST_VERSION, OnPublished, Publisher, Workshop, announce, new_lineage
from trainer.settings import TrainerSettings
from trainer.state import Resumed
from trainer.step import Fault
from trainer.workplace import Workplace, digest_of

FAR_BEHIND_BATCHES = 10
"""Lag, in full micro-batches, from which on catching up is worth a line in the log."""
CATCH_UP_PART = 4
"""Of what waits, one part in so many is learnt at once, within `max_batch` and `catch_up_batch`."""
SHOW_SECONDS = 2.0
"""Between looks at how well clicks were foreseen, for the metrics."""
GOOD_WHILE_BATCHES = 200
"""Micro-batches after a roll-back, without another, after which it is forgotten."""
MAX_ROLLBACKS = 3
"""Roll-backs in close succession after which what spikes is taken for the new usual: the world has changed."""
FAULTS: dict[Fault, str] = {
    "not_finite": "its loss or gradient is not finite",
    "spike": "it belongs to what made the loss spike, and its own loss lies far above the usual",
}

_log = structlog.get_logger()


def run_trainer(
    kafka: KafkaSettings,
    model: ModelSettings,
    trainer: TrainerSettings,
    *,
    checkpoints: Place,
    stop: threading.Event,
    on_published: OnPublished = lambda _: None,
) -> None:
    """Learns from `examples` until `stop` is set, then publishes what was learnt since the last full checkpoint.

    Of several processes that torchrun has started one leads; the others do what it tells (trainer/follow.py).

    Raises:
        ValueError: a topic is missing, another trainer works in the same folder, or there are more processes than
            partitions.
    """
    torch.set_num_threads(trainer.threads)
    collect_rarely()
    kernels()  # at the first start on a machine they are compiled, before anything waits to be learnt
    with crew_of() as crew:
        place = Workplace(kafka, model, trainer, checkpoints, crew)
        if crew.leads:
            lead(place, stop=stop, on_published=on_published)
        else:
            follow(place, stop=stop)


def lead(place: Workplace, *, stop: threading.Event, on_published: OnPublished) -> None:
    """What the only process does, or the first of several."""
    kafka, checkpoints, crew = place.kafka, place.checkpoints, place.crew
    with only_trainer(checkpoints) as term, producer(kafka) as sender, contextlib.ExitStack() as stack:
        newest = newest_announcement(kafka)
        reader = stack.enter_context(
            contextlib.closing(ExampleReader(kafka, announcements_from=newest.offsets, crew=crew))
        )
        workshop = Workshop(kafka, sender, place.trainer, checkpoints, term)
        publisher = stack.enter_context(contextlib.closing(Publisher(workshop)))
        loop = TrainerLoop(place, reader, sender, publisher, on_published=on_published)
        loop.start(newest)
        while not stop.is_set():
            loop.turn(stop)
        loop.publish_the_rest()
        crew.tell(encode_order(Stop()))


class TrainerLoop:
    """The numbered cut, turn by turn."""

    def __init__(
        self,
        place: Workplace,
        reader: ExampleReader,
        sender: KafkaProducer,
        publisher: Publisher,
        *,
        on_published: OnPublished,
    ) -> None:
        self._place = place
        self._reader = reader
        self._sender = sender
        self._publisher = publisher
        self._on_published = on_published
        self._boundaries: list[dict[int, int]] = []
        self._published_offsets: dict[int, int] = {}
        self._live: ModelAnnouncement | None = None
        self._generation = 0
        self._run = Run()
        self._wary_until: dict[int, int] = {}
        self._rollbacks = 0
        self._batches_since_rollback = 0
        self._shown_batches, self._shown_at = 0, 0.0
        self._is_behind = False
        self._lag = 0

    def start(self, newest: Announced) -> None:
        """Resumes the announced lineage from its newest whole checkpoint, or begins a new one at the first example."""
        self._live = live = newest.announcement
        self._publisher.forget_when_newer(newest.keys)
        found = live and self._checkpoint_of(live)
        if not found:
            self._begin_lineage(above=live)
            return
        self._resume(found)
        if live is not None and live.lineage == self.lineage and live.version < found.manifest.version:
            self._publisher.announce(found)  # its trainer was killed before it could

    def turn(self, stop: threading.Event) -> None:
        """Polls, learns what came, and publishes when it is time."""
        settings = self._place.trainer
        # 1.
        patience = Patience(settings.min_batch, self._most(), settings.max_wait_seconds)
        read = self._reader.gather(patience, stop=stop)
        if self._adopted(read.announcements):
            return
        # 2. and 3.
        metrics.EXAMPLES_DROPPED.labels("repeat").inc(read.repeats)
        for record, error in read.unreadable:
            self._set_aside(record, UnreadableError("malformed", error))
        if read.examples:
            self._learn(read)
        self._show_foresight()
        # 4.
        self._tell_published()
        if self._publisher.is_due(examples_trained=self.learner.examples_trained):
            self.publish_if_learnt()

    def _most(self) -> int:
        """Examples of the next micro-batch at most: more when many wait, for larger ones cost less for each."""
        settings = self._place.trainer
        return max(settings.max_batch, min(settings.catch_up_batch or 0, self._lag // CATCH_UP_PART))

    def publish_if_learnt(self) -> None:
        """Publishes the cut behind the last micro-batch, unless nothing was learnt since or the loss spikes."""
        metrics.PUBLICATION_HELD.set(self._run.is_open)
        learnt = self._reader.cut.offsets != self._published_offsets or self._publisher.is_full_due()
        if self._boundaries and learnt and not self._run.is_open:
            self._sender.flush()
            if self._publisher.is_full_due():
                self._tell(Compare())
                self._place.crew.check_same(digest_of(self.learner))
            self._publisher.publish(self.learner, self._reader.cut, self._boundaries)

    def publish_the_rest(self) -> None:
        """What was learnt since the last full checkpoint, as a full one: nothing is to be learnt again."""
        self._tell_published(wait=True)
        held = self._publisher.is_held(examples_trained=self.learner.examples_trained)
        if self._boundaries and not self._run.is_open and not held:
            self._sender.flush()
            self._publisher.publish(self.learner, self._reader.cut, self._boundaries, final=True)
            self._tell_published(wait=True)

    def _tell_published(self, *, wait: bool = False) -> None:
        published = self._publisher.finished(wait=wait)
        if published is None:
            return
        draft, announcement = published.draft, published.announcement
        self._live = announcement
        self._published_offsets = draft.cut.offsets
        del self._boundaries[: draft.boundaries]
        self._reader.commit(draft.cut)
        metrics.PUBLISHED_VERSION.set(announcement.version)
        tell = _log.info if announcement.kind == "full" else _log.debug
        tell(
            "published", model=announcement.name, kind=announcement.kind, examples_trained=announcement.examples_trained
        )
        self._on_published(announcement)

    def _learn(self, read: Read) -> None:
        began = time.perf_counter()
        self._tell(Learn(wary=bool(self._wary_until)))
        learnt = self.learner.learn(read.examples, mode="wary" if self._wary_until else "normal")
        for example, fault in learnt.refused:
            self._set_aside(read.records[example.id], UnreadableError(fault, FAULTS[fault]))
        self._boundaries.append(self._reader.cut.offsets)
        metrics.observe_micro_batch(self.learner, learnt)
        metrics.STEP_SECONDS.observe(time.perf_counter() - began)
        self._tell_lag(self._reader.lag())
        self._watch(learnt)
        self._watch_promoted()

    def _tell_lag(self, lag: int) -> None:
        """Once when it is far behind, and once when it no longer is."""
        self._lag = lag
        metrics.EXAMPLES_WAITING.set(lag)
        full = self._place.trainer.max_batch
        if not self._is_behind and lag > FAR_BEHIND_BATCHES * full:
            self._is_behind = True
            _log.info("catching up at full micro-batches", lag=lag, micro_batch=self._most())
        elif self._is_behind and lag < full:
            self._is_behind = False
            _log.info("caught up", lag=lag)

    def _show_foresight(self) -> None:
        """Every few seconds at most, and the last time when there is nothing more to learn."""
        batches, now = self.learner.guard.batches, time.monotonic()
        if batches != self._shown_batches and now >= self._shown_at + SHOW_SECONDS:
            metrics.observe_foresight(self.learner.prequential, items=len(self.learner.catalogue))
            metrics.observe_served(self.learner)
            self._shown_batches, self._shown_at = batches, now

    def _watch(self, learnt: Learnt) -> None:
        """Counts spikes; wary until everything that led to a roll-back was read again."""
        settings, read = self._place.trainer, self._reader.cut.offsets
        self._wary_until = {part: end for part, end in self._wary_until.items() if read.get(part, 0) < end}
        spike = learnt.z_score > settings.spike_z_score
        self._run.observe(spike=spike)
        self._batches_since_rollback += 1
        if spike:
            metrics.SPIKES.inc()
            _log.warning("the loss spikes; nothing is published meanwhile", loss=learnt.stepped.loss, z=learnt.z_score)
        if self._run.spikes >= settings.spikes:
            self._roll_back()

    def _roll_back(self) -> None:
        """To the last good cut of this lineage; what came after it is read again, and spikes are refused then."""
        self._tell_published(wait=True)
        self._rollbacks = self._rollbacks + 1 if self._batches_since_rollback < GOOD_WHILE_BATCHES else 1
        self._batches_since_rollback = 0
        suspected, lineage = self._reader.cut.offsets, self.lineage
        good = newest_checkpoint(self._place.checkpoints / lineage, on_broken=self._report_broken)
        if good is None:
            self._go_on(lineage, self._beginning())
        else:
            self._resume(good)
        if self._rollbacks > MAX_ROLLBACKS:
            self._tell(BeginAnew())
            self.learner.guard.begin_anew()
            self._rollbacks = 0
            _log.error("the loss stays high after every roll-back: taken for the new usual", lineage=lineage)
        else:
            self._wary_until = suspected
        metrics.ROLLBACKS.labels("divergence").inc()
        _log.error(
            "learning diverged: rolled back to the last good checkpoint",
            lineage=lineage,
            version=good and good.manifest.version,
            examples_trained=self.learner.examples_trained,
        )

    def _beginning(self) -> Resumed:
        self._tell(Begin())
        return self._place.beginning()

    def _tell(self, order: Order) -> None:
        """To the processes that follow; what it says is done here as well, at once."""
        self._place.crew.tell(encode_order(order))

    def _set_aside(self, record: ConsumerRecord, error: UnreadableError) -> None:
        """Sends the record to the dead letters; acknowledged before the next checkpoint says that it was read."""
        letter = dead_letter(record, error, max_bytes=self._place.kafka.max_message_bytes)
        self._sender.send(
            record.topic + DEAD_LETTER_SUFFIX,
            key=letter.key,
            value=letter.value,
            headers=letter.headers,
            partition=record.partition,
        )
        metrics.EXAMPLES_DROPPED.labels(error.reason).inc()
        _log.warning("an example was set aside", reason=error.reason, error=str(error), offset=record.offset)

    def _adopted(self, announcements: list[ModelAnnouncement]) -> bool:
        """Goes over to what somebody else made live: a retrain that passed the gate, or an older version.

        Raises:
            FencedError: the other is a trainer that has taken over.
        """
        others = [one for one in announcements if one.epoch != self._publisher.term.epoch]
        if any(one.epoch > self._publisher.term.epoch for one in others):
            self._publisher.term.check()
        promoted = None
        for one in others:
            promoted = one if one.generation > self._generation and one.supersedes(promoted) else promoted
        if promoted is None:
            return False
        checkpoint = self._checkpoint_of(promoted)
        if checkpoint is None:
            _log.error("the announced model is not in this folder; learning goes on", announced=promoted.path)
            return False
        self._tell_published(wait=True)
        champion, lead = self.lineage, lead_of(self.learner.prequential)
        self._live = promoted
        self._resume(checkpoint)
        if promoted.version == FIRST_VERSION and promoted.lineage != champion:
            self._put_on_probation(champion, lead)
        return True

    def _put_on_probation(self, champion: str, lead: Lead | None) -> None:
        """A model fresh from the gate; not an older version that somebody made live again."""
        if lead is not None and self._place.trainer.probation_clicks:
            self.learner.probation = Probation(champion, lead)

    def _watch_promoted(self) -> None:
        probation = self.learner.probation
        if probation is None:
            return
        finding = probation.look(clicks=max(1, self._place.trainer.probation_clicks))
        metrics.PROBATION_LEAD.labels("before").set(probation.before.mean)
        if probation.lead:
            metrics.PROBATION_LEAD.labels("since").set(probation.since().mean)
        if finding == "passed":
            self.learner.probation = None
            _log.info("the promoted model has shown itself", lineage=self.lineage)
        elif finding == "worse":
            self._bring_back(probation)

    def _bring_back(self, probation: Probation) -> None:
        """The lineage before the promotion, from its last full checkpoint; what came since is learnt by it as well."""
        self.learner.probation = None
        back = newest_checkpoint(self._place.checkpoints / probation.champion, on_broken=self._report_broken)
        told = {"before": probation.before.mean, "since": probation.since().mean, "clicks": len(probation.lead)}
        if back is None:
            _log.error("the promoted model is worse, and the one before it is gone", lineage=self.lineage, **told)
            return
        self._tell_published(wait=True)
        worse = self.lineage
        self._live = announce(self._sender, self._place.kafka, back, generation=self._generation + 1)
        self._resume(back)
        metrics.ROLLBACKS.labels("worse").inc()
        _log.error(
            "the promoted model is worse: the one before it is live again", worse=worse, live=self._live.name, **told
        )
        self._on_published(self._live)

    def _checkpoint_of(self, live: ModelAnnouncement) -> WrittenCheckpoint | None:
        """Its lineage's newest whole checkpoint; the announced one itself where that takes the lineage back to it."""
        folder = self._place.checkpoints / live.lineage
        newest = newest_checkpoint(folder, on_broken=self._report_broken)
        if newest is None or newest.manifest.generation >= live.generation or live.kind == "delta":
            return newest
        try:
            return verify(folder / f"{live.version:08d}", sha256=live.manifest_sha256)
        except BrokenCheckpointError as error:
            self._report_broken(error)
            return newest

    def _resume(self, checkpoint: WrittenCheckpoint) -> None:
        self._tell(Resume(absolute(checkpoint.path)))
        resumed = self._place.resumed(checkpoint.path)
        live = self._live
        same = live is not None and live.lineage == checkpoint.manifest.lineage
        self._generation = max(checkpoint.manifest.generation, live.generation if live is not None and same else 0)
        self._go_on(checkpoint.manifest.lineage, resumed)

    def _begin_lineage(self, *, above: ModelAnnouncement | None) -> None:
        self._generation = (above.generation if above is not None else 0) + 1
        self._go_on(new_lineage(), self._beginning())

    def _go_on(self, lineage: str, resumed: Resumed) -> None:
        self._tell_published(wait=True)
        self.lineage = lineage
        self.learner = resumed.learner
        self._reader.resume(resumed.cut)
        self._boundaries.clear()
        self._published_offsets = resumed.cut.offsets
        self._publisher.begin(lineage, generation=self._generation, live=self._live)
        self._run, self._wary_until = Run(), {}
        _log.info("learning", lineage=lineage, examples_trained=self.learner.examples_trained)

    @staticmethod
    def _report_broken(error: BrokenCheckpointError) -> None:
        _log.error("a broken checkpoint is passed over", error=str(error))
