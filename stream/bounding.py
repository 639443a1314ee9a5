"""The bytes of a user's state are bounded: beyond `stream.max_state_bytes` the oldest goes first.

First the slates that are closed and only remembered, then those that are open, which are closed early and so are
learnt from, then the clicks that wait for their slate, which are sent without it, and at last the oldest items of the
sequence. What an event goes on from depends on it, so it is kept after every single event, wherever batches are cut.
"""

from __future__ import annotations

from typing import NamedTuple

from stream.draft import Arrival, Draft
from stream.examples import Example
from stream.sequences import UserState, encode_state
from stream.settings import StreamSettings

GROWTH_PER_BYTE = 5
"""A probability takes two bytes of an event at least, and nine of a state."""
GROWTH = 512
"""What an event adds beside what it says: marks, times, offsets, counts."""
BYTES_PER_CHARACTER = 4


class Bounded(NamedTuple):
    """A state that is small enough, and the examples of what it had to let go of."""

    state: UserState
    examples: list[Example]
    row_bytes: int


class Sizes:
    """How many bytes the states of a batch may have at most, told without encoding them."""

    def __init__(self, settings: StreamSettings) -> None:
        self._max_bytes = settings.max_state_bytes
        self._at_most: dict[bytes, int] = {}

    def met(self, key: bytes, state: UserState | None, *, row_bytes: int) -> None:
        """A user's state as it is read or written, in so many bytes."""
        self._at_most[key] = 0 if state is None else row_bytes + _unpacked_bytes(state)

    def may_exceed(self, key: bytes, state: UserState, *, event_bytes: int) -> bool:
        """Whether an event of so many bytes may have made this state too large."""
        at_most = self._at_most[key] + GROWTH_PER_BYTE * event_bytes + GROWTH
        self._at_most[key] = at_most
        # Of every click that waits there is a copy of the items before it.
        return at_most > self._max_bytes or bool(state.parked)

    def at_most(self, key: bytes) -> int:
        """Of a user who was met; clicks that wait come on top."""
        return self._at_most[key]


def bounded(state: UserState, user_id: str, arrival: Arrival, settings: StreamSettings, *, ordinal: int) -> Bounded:
    """The state without its oldest, as far as it is too large; `ordinal` is that of the event's next example."""
    row_bytes = len(encode_state(state))
    if row_bytes <= settings.max_state_bytes:
        return Bounded(state, [], row_bytes)
    draft = Draft(state, user_id, arrival, settings, ordinal=ordinal)
    while row_bytes > settings.max_state_bytes and draft.drop_oldest():
        state = draft.finish()
        row_bytes = len(encode_state(state))
    return Bounded(state, draft.examples, row_bytes)


def _unpacked_bytes(state: UserState) -> int:
    """Of the items: one that is unlike the others can take from all of them what they had in common."""
    return BYTES_PER_CHARACTER * (len("".join(state.items)) + len(state.items))
