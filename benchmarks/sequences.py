"""Holds the `sequences` topic against the log that was played: every click in its user's sequence exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from deploy.observe.reading import read_all
from stream.sequences import UserState, decode_state
from stream.settings import KafkaSettings
from stream.topics import SEQUENCES

DIFFERENCES_SHOWN = 5


class Chosen(NamedTuple):
    """A click as a sequence keeps it."""

    item_id: str
    time_ms: int


class Comparison(NamedTuple):
    """Users and clicks of the log, and how many of them stand on the topic as they should."""

    users: int
    equal_users: int
    clicks: int
    applied: int
    """Clicks ever applied, by the states' own account: a click taken twice or lost shows here for sure."""
    max_length: int
    """So many of a user's last clicks were compared: items, times and order."""
    differences: tuple[str, ...]
    """The first few, in words."""


def clicks_of(rows: pa.Table) -> dict[str, list[Chosen]]:
    """What every user of a log clicked, in its order; an exact repeat (user, item, time) is a duplicate: left out."""
    clicks: dict[str, dict[Chosen, None]] = {}
    chosen = rows.filter(pc.field("clicked"))
    columns = (chosen[name].to_pylist() for name in ("user_id", "item_id", "time_ms"))
    for user_id, item_id, time_ms in zip(*columns, strict=True):
        clicks.setdefault(user_id, {})[Chosen(item_id, time_ms)] = None
    return {user_id: list(once) for user_id, once in clicks.items()}


def newest_states(kafka: KafkaSettings) -> dict[str, UserState]:
    """Every user's state as a reader of the compacted topic finds it."""
    newest: dict[bytes, bytes | None] = {record.key: record.value for record in read_all(kafka, SEQUENCES)}
    return {key.decode(): decode_state(value) for key, value in newest.items() if value is not None}


def compare(clicks: Mapping[str, Sequence[Chosen]], states: Mapping[str, UserState], *, max_length: int) -> Comparison:
    """The last `max_length` clicks of every user in order, and how many were ever applied; others' states too."""
    differences = [
        difference
        for user_id in clicks.keys() | states.keys()
        if (difference := _difference(user_id, clicks.get(user_id, ()), states.get(user_id), max_length=max_length))
    ]
    return Comparison(
        users=len(clicks),
        equal_users=len(clicks) - len(differences),
        clicks=sum(len(chosen) for chosen in clicks.values()),
        applied=sum(state.clicks_applied for state in states.values()),
        max_length=max_length,
        differences=tuple(sorted(differences)[:DIFFERENCES_SHOWN]),
    )


def _difference(user_id: str, clicks: Sequence[Chosen], state: UserState | None, *, max_length: int) -> str | None:
    if state is None:
        return f"user {user_id}: {len(clicks)} clicks in the log, no sequence"
    if state.clicks_applied != len(clicks):
        return f"user {user_id}: {len(clicks)} clicks in the log, {state.clicks_applied} applied"
    kept = [Chosen(*click) for click in zip(state.items, state.times_ms, strict=True)]
    wanted = list(clicks[-max_length:])
    if kept == wanted:
        return None
    place = next((at for at, pair in enumerate(zip(kept, wanted, strict=False)) if pair[0] != pair[1]), len(kept))
    return f"user {user_id}: the sequence differs from the log in place {place} of {len(wanted)}"
