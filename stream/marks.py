"""What is known of one partition beside its users: its event time, the offsets folded in, when something falls due.

It follows from the users' states alone, so a store filled from `sequences` knows the same as the one that was lost.
"""

from __future__ import annotations

import msgspec

from stream.sequences import NEVER, Applied, Outline

NEVER_DUE_MS = 1 << 62


class Marks(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """As the store keeps them, written together with the states they follow from."""

    newest: tuple[bytes, int] = (b"", 0)
    """The user whose clock is furthest ahead, by key, and that clock."""
    second: tuple[bytes, int] = (b"", 0)
    """The next user's, which is the event time of the partition."""
    applied: Applied = Applied()
    """The highest offsets folded in; what stands at or before them was folded, whoever's it was."""
    next_due_ms: int = 0
    """Nothing of any user falls due before this event time."""


class EventClock:
    """The event time of a partition: the newest that events of two different users have reached.

    One user with a wrong clock must not end everybody's windows, nor make everybody look inactive.
    """

    def __init__(self, marks: Marks) -> None:
        self.newest = marks.newest
        self.second = marks.second

    @property
    def now_ms(self) -> int:
        """The event time; zero as long as there is but one user."""
        return self.second[1]

    def see(self, key: bytes, at_ms: int) -> None:
        """Takes in how far a user's clock stands."""
        if key == self.newest[0]:
            self.newest = (key, max(at_ms, self.newest[1]))
        elif at_ms > self.newest[1]:
            self.newest, self.second = (key, at_ms), self.newest
        elif at_ms > self.second[1]:
            self.second = (key, at_ms)


def furthest(one: Applied, other: Applied) -> Applied:
    """The higher offset of every topic."""
    return Applied(
        max(one.clicks, other.clicks),
        max(one.impressions, other.impressions),
        max(one.recommendations, other.recommendations),
    )


def applied_of(state: Outline) -> Applied:
    """The highest offsets that a state speaks for: its own, and those of users forgotten in its favour."""
    inherited = state.inherited
    return state.applied if inherited is None else furthest(state.applied, inherited.applied)


def is_behind(applied: Applied, topic: str, offset: int) -> bool:
    """Whether a record of one of the three topics was folded in before."""
    through: int = getattr(applied, topic)
    return through != NEVER and offset <= through
