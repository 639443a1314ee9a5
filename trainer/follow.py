"""A process that helps another to learn: it does whatever that one tells, in the same order (trainer/crew.py).

It polls its own partitions, exchanges what came, and takes part in every step. It decides, writes and publishes
nothing: the cut of all processes is one, and stands in the checkpoints of the one that leads. Where one process dies,
the others end as well, and torchrun starts all of them again, from the last full checkpoint.
"""

from __future__ import annotations

import contextlib
import threading

from model.store import place_of
from trainer.examples import ExampleReader, Read
from trainer.orders import Begin, BeginAnew, Compare, Learn, Order, Poll, Resume, Stop, decode_order
from trainer.state import Resumed
from trainer.workplace import Workplace, digest_of


def follow(place: Workplace, *, stop: threading.Event) -> None:
    """Until it is told to stop; that it was asked to itself is passed on to the one that leads."""
    with contextlib.closing(ExampleReader(place.kafka, announcements_from={}, crew=place.crew)) as reader:
        follower = Follower(place, reader)
        while not isinstance(order := decode_order(place.crew.hear()), Stop):
            reader.wants_to_stop = stop.is_set()
            follower.obey(order)


class Follower:
    """One order after the other."""

    def __init__(self, place: Workplace, reader: ExampleReader) -> None:
        self._place = place
        self._reader = reader
        self._read = Read.nothing()
        self._learner = place.beginning().learner

    def obey(self, order: Order) -> None:
        """What it says (trainer/orders.py)."""
        match order:
            case Poll(most, timeout_seconds):
                more = self._reader.take_part(most=most, timeout_seconds=timeout_seconds)
                self._read = self._read.then(more)
            case Learn(wary):
                read, self._read = self._read.in_order(), Read.nothing()
                self._learner.learn(read.examples, mode="wary" if wary else "normal")
            case Begin():
                self._go_on(self._place.beginning())
            case Resume(path):
                self._go_on(self._place.resumed(place_of(path)))
            case BeginAnew():
                self._learner.guard.begin_anew()
            case Compare():
                self._place.crew.check_same(digest_of(self._learner))
            case Stop():
                pass

    def _go_on(self, resumed: Resumed) -> None:
        self._read = Read.nothing()
        self._learner = resumed.learner
        self._reader.resume(resumed.cut)
