"""What the network is reminded of: the last sequence of a bounded number of users.

Who stays when there are more is a choice:

- `uniform`: every user who ever clicked stays with the same chance (Vitter 1985, algorithm R).
- `per_item`: sequences that end in the same item share its places, and the item with the most of them gives one up
  (class-balancing reservoir sampling, Chrysakis & Moens 2020), so that rare items are not crowded out.
- `herding`: as `per_item`, and of one item's sequences those stay whose mean hidden state is nearest to the mean of all
  that ever ended in it (Welling 2009; as ADER chooses exemplars, Mi et al. 2020, but one by one as they come).

Shape: D units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from trainer.batch import Stretch

Choice = Literal["uniform", "per_item", "herding"]

CONTESTANTS = 16
"""Places looked at to find the item with the most of them; all would cost more than they are worth."""


class Places(msgspec.Struct):
    """The sequences that end in one item, and what is known of all that ever did."""

    users: list[str] = []
    arrivals: int = 0
    states: list[bytes] = []
    """herding: the hidden state of each user's sequence, of length 1, float32."""
    sum_state: bytes = b""
    """herding: of all arrivals, float32."""


class Candidate(NamedTuple):
    """Somebody who asks for a place."""

    user_id: str
    item_id: str
    """The newest item of the sequence."""
    state_D: Float[np.ndarray, " D"] | None


class Replay(msgspec.Struct):
    """A reservoir of users; one in it always stands there with the newest sequence, one pushed out may come again."""

    max_users: int
    max_items: int
    """Kept per user; the oldest go."""
    users: list[str] = []
    stretches: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    arrivals: int = 0
    """Users who ever asked for a place."""
    choice: Choice = "uniform"
    places: dict[str, Places] = {}
    """By the item that sequences end in; empty where the choice is uniform."""

    def remember(
        self,
        user_id: str,
        stretch: Stretch,
        *,
        rng: np.random.Generator,
        state_D: Float[np.ndarray, " D"] | None = None,
    ) -> None:
        """Puts the user's newest items there; a user who gets no place changes nothing but the odds.

        `state_D` is what the network made of the sequence before its last item; only herding looks at it.
        """
        known = self.stretches.get(user_id)
        candidate = Candidate(user_id, stretch.items[-1], state_D)
        if known is not None:
            self._move(candidate, Stretch(*known).items[-1])
            self.stretches[user_id] = extended(Stretch(*known), stretch, max_items=self.max_items)
            return
        self.arrivals += 1
        if self._makes_room(candidate, rng):
            self.users.append(user_id)
            self.stretches[user_id] = extended(Stretch((), ()), stretch, max_items=self.max_items)

    def _makes_room(self, candidate: Candidate, rng: np.random.Generator) -> bool:
        if self.choice != "uniform":
            return self._makes_room_by_item(candidate, rng)
        if len(self.users) < self.max_users:
            return True
        place = int(rng.integers(self.arrivals))
        if place >= self.max_users:
            return False
        self._forget(place)
        return True

    def _makes_room_by_item(self, candidate: Candidate, rng: np.random.Generator) -> bool:
        """The newcomer is put among its item's places, then the fullest item gives one up; perhaps the newcomer's."""
        if self.max_users == 0:
            return False
        own = self._arrive(candidate)
        if len(self.users) < self.max_users:
            return True
        fullest = self._fullest(candidate.item_id, rng)
        places = self.places[fullest]
        leaves = places.users[self._leaving(places, is_own=places is own, rng=rng)]
        if leaves != candidate.user_id:
            self._forget(self.users.index(leaves))
        self._leave(leaves, fullest)
        return leaves != candidate.user_id

    def _arrive(self, candidate: Candidate) -> Places:
        places = self.places.setdefault(candidate.item_id, Places())
        places.arrivals += 1
        places.users.append(candidate.user_id)
        if self.choice == "herding":
            assert candidate.state_D is not None, "herding chooses by hidden states"
            state_D = (candidate.state_D / max(1e-12, float(np.linalg.norm(candidate.state_D)))).astype(np.float32)
            places.states.append(state_D.tobytes())
            sum_D = np.frombuffer(places.sum_state, dtype=np.float32) if places.sum_state else np.zeros_like(state_D)
            places.sum_state = (sum_D + state_D).tobytes()
        return places

    def _fullest(self, item_id: str, rng: np.random.Generator) -> str:
        """Of the items of some users at random, and the newcomer's, the one with the most places."""
        drawn = rng.integers(len(self.users), size=CONTESTANTS).tolist()
        items = [item_id, *(self.stretches[self.users[place]][0][-1] for place in drawn)]
        return max(items, key=lambda item: len(self.places[item].users))

    def _leaving(self, places: Places, *, is_own: bool, rng: np.random.Generator) -> int:
        if self.choice == "herding":
            return _least_like_the_mean(places)
        # Of its own item's arrivals the newcomer is as likely to stay as every one before: algorithm R once more.
        if is_own and len(places.users) > 1:
            place = int(rng.integers(places.arrivals))
            return place if place < len(places.users) - 1 else len(places.users) - 1
        return int(rng.integers(len(places.users)))

    def _leave(self, user_id: str, item_id: str) -> None:
        places = self.places[item_id]
        place = places.users.index(user_id)
        del places.users[place]
        if places.states:
            del places.states[place]
        if not places.users:
            del self.places[item_id]

    def _move(self, candidate: Candidate, from_item: str) -> None:
        """A user in the reservoir clicked again: the sequence now ends in another item."""
        if self.choice != "uniform" and candidate.item_id != from_item:
            self._leave(candidate.user_id, from_item)
            self._arrive(candidate)

    def _forget(self, place: int) -> None:
        """The last user takes the place of the one who goes."""
        del self.stretches[self.users[place]]
        self.users[place] = self.users[-1]
        self.users.pop()

    def bounded(self, *, max_users: int, max_items: int, choice: Choice = "uniform") -> Replay:
        """The same memory within other bounds, or by another choice: the first users and the newest items stay."""
        users = self.users[:max_users]
        stretches = {
            user: (self.stretches[user][0][-max_items:], self.stretches[user][1][-max_items:]) for user in users
        }
        if choice == self.choice and len(users) == len(self.users):
            return Replay(max_users, max_items, users, stretches, self.arrivals, choice, self.places)
        if choice == "herding":
            # Hidden states of the past are not known any more: it begins anew.
            return Replay(max_users, max_items, choice=choice)
        places: dict[str, Places] = {}
        for user in users if choice == "per_item" else ():
            of_item = places.setdefault(stretches[user][0][-1], Places())
            of_item.users.append(user)
            of_item.arrivals += 1
        return Replay(max_users, max_items, users, stretches, self.arrivals, choice, places)

    def draw(self, count: int, *, rng: np.random.Generator) -> Sequence[Stretch]:
        """Different users at random; all of them if there are fewer."""
        chosen = rng.choice(len(self.users), size=min(count, len(self.users)), replace=False, shuffle=False)
        stretches = (Stretch(*self.stretches[self.users[place]]) for place in chosen.tolist())
        return [stretch for stretch in stretches if len(stretch.items) > 1]


def _least_like_the_mean(places: Places) -> int:
    """The sequence without which the mean of those that stay is nearest to the mean of all arrivals."""
    if len(places.users) == 1:
        return 0
    state_ND = np.stack([np.frombuffer(state, dtype=np.float32) for state in places.states])
    mean_D = np.frombuffer(places.sum_state, dtype=np.float32) / places.arrivals
    mean_without_ND = (state_ND.sum(axis=0) - state_ND) / (len(state_ND) - 1)
    return int(np.linalg.norm(mean_without_ND - mean_D, axis=1).argmin())


def extended(known: Stretch, new: Stretch, *, max_items: int) -> Stretch:
    """The known items and weights with the new ones after them, where they continue one another; else the new alone.

    An item of the new context of which nothing is known was somebody's click once: it weighs 1. What was refused or
    left out is known, without weight (`Learner.learn`), as long as its user has a place. The first item has nothing
    before it and is no target, whatever its weight.
    """
    context = len(new.items) - len(new.weights)
    if known.items and known.items[-context:] == new.items[:context][-len(known.items) :] and context:
        items, weights = known.items + new.items[context:], known.weights + new.weights
    else:
        items, weights = new.items, (1.0,) * context + new.weights
    return Stretch(items[-max_items:], weights[-max_items:])
