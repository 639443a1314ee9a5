"""The simulated audience: what all users together send, second by second (no Kafka, no clock).

It tells the system nothing but what an application would: titles, clicks, pages opened, and which items came into
view. The truth behind it stands in `deploy.local.world`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from deploy.local.settings import AudienceSettings
from deploy.local.world import Visitor, World, after_click, arrive, browse, look, make_world
from stream.events import Click, Impression, Recommendation, Record, Request, SeenItem
from stream.topics import CLICKS, IMPRESSIONS, ITEMS, REQUESTS


class Message(msgspec.Struct, frozen=True):
    """A record on its way to the topic of that name (without the prefix)."""

    topic: str
    key: str
    record: Record


class Audience:
    """All users together; the same seed, times and recommendations give the same messages."""

    def __init__(self, settings: AudienceSettings, *, run: str) -> None:
        self.world: World = make_world(settings)
        self._settings = settings
        self._run = run
        self._rng = np.random.default_rng([settings.seed, 1])
        self._visitors: dict[int, Visitor] = {}
        self._slates: dict[str, Recommendation] = {}
        self._due = {"organic": 0.0, "looks": 0.0, "requests": 0.0}
        self._events = 0
        self._row = {item.item_id: row for row, item in enumerate(self.world.items)}
        self._user = {user_id: user for user, user_id in enumerate(self.world.users)}

    def titles(self) -> list[Message]:
        """The catalogue, as an application would publish it."""
        return [Message(ITEMS, item.item_id, item) for item in self.world.items]

    def receive(self, recommendation: Recommendation) -> None:
        """Puts a slate before its user; only the newest is there to be looked at."""
        if recommendation.user_id in self._user:
            self._slates.pop(recommendation.user_id, None)
            self._slates[recommendation.user_id] = recommendation

    def act(self, *, now_ms: int, passed_seconds: float) -> list[Message]:
        """What all users do in so many seconds."""
        settings = self._settings
        messages: list[Message] = []
        for _ in range(self._times("looks", settings.looks_per_second * passed_seconds)):
            messages += self._look_at_a_slate(now_ms)
        for _ in range(self._times("organic", settings.organic_clicks_per_second * passed_seconds)):
            messages.append(self._click_organically(now_ms))
        for _ in range(self._times("requests", settings.requests_per_second * passed_seconds)):
            messages.append(self._open_a_page(now_ms))
        return messages

    def _times(self, what: str, more: float) -> int:
        """How often something happens now; the fraction that is left over counts the next time."""
        self._due[what] += more
        whole = int(self._due[what])
        self._due[what] -= whole
        return whole

    def _look_at_a_slate(self, now_ms: int) -> list[Message]:
        """Somebody with an unseen slate looks at it."""
        if not self._slates:
            return []
        slate = self._slates.pop(list(self._slates)[self._rng.integers(len(self._slates))])
        visitor = self._visitor(self._user[slate.user_id])
        rows = [self._row.get(item.item_id) for item in slate.items]
        seen = look(self.world, visitor, rows, self._rng)
        return [
            *self._impression(slate, seen.examined, now_ms),
            *(self._click_slot(slate, slot, now_ms) for slot in seen.clicked),
        ]

    def _impression(self, slate: Recommendation, examined: Sequence[int], now_ms: int) -> list[Message]:
        if not examined:
            return []
        items = tuple(SeenItem(item_id=slate.items[slot].item_id, position=slot) for slot in examined)
        impression = Impression(
            event_id=self._event_id(),
            user_id=slate.user_id,
            request_id=slate.request_id,
            timestamp_ms=now_ms,
            items=items,
        )
        return [_message(IMPRESSIONS, impression)]

    def _click_slot(self, slate: Recommendation, slot: int, now_ms: int) -> Message:
        row = self._row[slate.items[slot].item_id]
        click = self._click(self._user[slate.user_id], row, now_ms)
        return _message(CLICKS, msgspec.structs.replace(click, request_id=slate.request_id, position=slot))

    def _click_organically(self, now_ms: int) -> Message:
        user = int(self._rng.integers(len(self.world.users)))
        return _message(CLICKS, self._click(user, browse(self.world, self._visitor(user), self._rng), now_ms))

    def _click(self, user: int, row: int, now_ms: int) -> Click:
        self._visitors[user] = after_click(self.world, self._visitor(user), row, self._rng)
        return Click(
            event_id=self._event_id(),
            user_id=self.world.users[user],
            item_id=self.world.items[row].item_id,
            timestamp_ms=now_ms,
        )

    def _open_a_page(self, now_ms: int) -> Message:
        user_id = self.world.users[int(self._rng.integers(len(self.world.users)))]
        return _message(REQUESTS, Request(event_id=self._event_id(), user_id=user_id, timestamp_ms=now_ms))

    def _visitor(self, user: int) -> Visitor:
        if user not in self._visitors:
            self._visitors[user] = arrive(self.world, user, self._rng)
        return self._visitors[user]

    def _event_id(self) -> str:
        self._events += 1
        return f"{self._run}-{self._events}"


def _message(topic: str, record: Click | Impression | Request) -> Message:
    return Message(topic, record.user_id, record)
