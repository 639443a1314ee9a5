"""What the network is reminded of: the last sequence of a bounded number of users, uniform over all there ever were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from trainer.batch import Stretch


class Replay(msgspec.Struct):
    """A reservoir: each user who ever clicked is in it with the same chance (Vitter 1985, algorithm R).

    A user in it always stands there with the newest sequence. One who was pushed out and clicks again counts as new.
    """

    max_users: int
    max_items: int
    """Kept per user; the oldest go."""
    users: list[str] = []
    stretches: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    arrivals: int = 0
    """Users who ever asked for a place."""

    def remember(self, user_id: str, stretch: Stretch, *, rng: np.random.Generator) -> None:
        """Puts the user's newest items there; a user who gets no place changes nothing but the odds."""
        known = self.stretches.get(user_id)
        if known is not None:
            self.stretches[user_id] = extended(Stretch(*known), stretch, max_items=self.max_items)
            return
        self.arrivals += 1
        if self._makes_room(user_id, rng):
            self.stretches[user_id] = extended(Stretch((), ()), stretch, max_items=self.max_items)

    def _makes_room(self, user_id: str, rng: np.random.Generator) -> bool:
        if len(self.users) < self.max_users:
            self.users.append(user_id)
            return True
        place = int(rng.integers(self.arrivals))
        if place >= self.max_users:
            return False
        del self.stretches[self.users[place]]
        self.users[place] = user_id
        return True

    def bounded(self, *, max_users: int, max_items: int) -> Replay:
        """The same memory within other bounds: the first users and the newest items stay."""
        users = self.users[:max_users]
        stretches = {
            user: (self.stretches[user][0][-max_items:], self.stretches[user][1][-max_items:]) for user in users
        }
        return Replay(max_users, max_items, users, stretches, self.arrivals)

    def draw(self, count: int, *, rng: np.random.Generator) -> Sequence[Stretch]:
        """Different users at random; all of them if there are fewer."""
        chosen = rng.choice(len(self.users), size=min(count, len(self.users)), replace=False, shuffle=False)
        stretches = (Stretch(*self.stretches[self.users[place]]) for place in chosen.tolist())
        return [stretch for stretch in stretches if len(stretch.items) > 1]


def extended(known: Stretch, new: Stretch, *, max_items: int) -> Stretch:
    """The known items and weights with the new ones after them, where they continue one another; else the new alone.

    An item of the new context that was never learnt with a weight was somebody's click once: it weighs 1. The first
    item has nothing before it and is no target, whatever its weight.
    """
    context = len(new.items) - len(new.weights)
    if known.items and known.items[-context:] == new.items[:context][-len(known.items) :] and context:
        items, weights = known.items + new.items[context:], known.weights + new.weights
    else:
        items, weights = new.items, (1.0,) * context + new.weights
    return Stretch(items[-max_items:], weights[-max_items:])
