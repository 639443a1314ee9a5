"""Why a user was recommended what they were: a slate from the topic, held against the sequence and the checkpoint.

A slate carries what it was drawn from: the version of the model, how many clicks of the user it knew, the policy and
its chances. The clicks stand in the user's state; the score and the attention are computed again from the checkpoint
that the slate names, where it still exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import msgspec
import torch
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from deploy.observe.reading import partition_of, partitions_of
from model.attention import looked_at
from model.catalogue import PADDING
from model.chain import rebuild
from model.checkpoint import BrokenCheckpointError, ServingModel, full_versions, read_serving, version_path
from model.delta import Link, delta_path
from model.store import Place, read
from stream import clients
from stream.events import Recommendation
from stream.sequences import UserState, decode_state
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS, SEQUENCES

_POLL_MS = 1_000
AGREES_WITHIN = 1e-3
"""Scores differ in their last digits with the batch that they were computed in, and with the processor."""


class SeenClick(msgspec.Struct, frozen=True, kw_only=True):
    """One of the clicks that the slate knew."""

    item_id: str
    timestamp_ms: int
    attention: float | None = None
    """Mean over blocks and heads; absent where the network did not read it, or cannot be asked any more."""


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What the checkpoint says today."""

    status: Literal["agrees", "differs", "gone", "counted", "forgotten"]
    """`gone`: the checkpoint is; `counted`: no network scored the slate; `forgotten`: clicks that it knew are."""
    what: str
    """In words."""
    scores: dict[str, float] = {}
    """Of the items that had a score."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a slate."""

    slate: Recommendation
    clicks: tuple[SeenClick, ...]
    """Oldest first."""
    forgotten: int
    """Clicks that the slate knew and the user's state does not any more."""
    again: Again


def explain(kafka: KafkaSettings, checkpoints: Place, request_id: str, *, user_id: str | None = None) -> Explanation:
    """Reads `recommendations` (only the user's partition, where the user is named), then `sequences`.

    Raises:
        ValueError: no such slate is kept, or the topics are missing.
    """
    slate = find_slate(kafka, request_id, user_id=user_id)
    clicks, forgotten = known_clicks(read_state(kafka, slate.user_id), slate)
    return again(slate, clicks, forgotten, checkpoints)


def find_slate(kafka: KafkaSettings, request_id: str, *, user_id: str | None) -> Recommendation:
    """The first slate of a request: what was served first was served.

    Raises:
        ValueError: none is kept.
    """
    named = request_id.encode()
    for record in _records(kafka, RECOMMENDATIONS, user_id):
        if record.value is None or named not in record.value:
            continue
        try:
            slate = msgspec.json.decode(record.value, type=Recommendation)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if slate.request_id == request_id and user_id in {None, slate.user_id}:
            return slate
    raise ValueError(
        f"no slate of request {request_id} stands on {kafka.topic(RECOMMENDATIONS)}; it was never answered, or is "
        "older than kafka.retention_hours"
    )


def read_state(kafka: KafkaSettings, user_id: str) -> UserState:
    """The user's newest state; empty where there is none."""
    state, key = UserState(), user_id.encode()
    for record in _records(kafka, SEQUENCES, user_id):
        if record.key == key:
            state = UserState() if record.value is None else decode_state(record.value)
    return state


def known_clicks(state: UserState, slate: Recommendation) -> tuple[tuple[SeenClick, ...], int]:
    """The clicks that the slate knew, as far as the state still holds them, and how many it does not.

    Clicks are dropped from the newest end, as many as came since; one that came late, and took its place further in
    front, is so taken for an older one.
    """
    since = 0 if slate.sequence_position is None else max(0, state.clicks_applied - slate.sequence_position)
    kept = max(0, len(state.items) - since)
    known = slate.history_length if slate.history_length is not None else kept
    first = max(0, kept - known)
    pairs = zip(state.items[first:kept], state.times_ms[first:kept], strict=True)
    clicks = tuple(SeenClick(item_id=item_id, timestamp_ms=at_ms) for item_id, at_ms in pairs)
    return clicks, max(0, known - len(clicks))


def again(slate: Recommendation, clicks: tuple[SeenClick, ...], forgotten: int, checkpoints: Place) -> Explanation:
    """The slate's scores and attention, computed from its checkpoint."""
    if slate.model_version is None or not clicks:
        said = Again(status="counted", what="no network scored it; its scores are logarithms of counts of that moment")
        if slate.history_length and not clicks:
            said = Again(status="forgotten", what="the clicks that it knew are forgotten; scores are as logged")
        return Explanation(slate=slate, clicks=clicks, forgotten=forgotten, again=said)
    try:
        serving = read_version(checkpoints, slate.model_version)
    except (BrokenCheckpointError, ValueError) as error:
        said = Again(status="gone", what=f"its checkpoint is gone ({error}); scores are as logged")
        return Explanation(slate=slate, clicks=clicks, forgotten=forgotten, again=said)
    return _scored(slate, clicks, forgotten, serving)


def read_version(checkpoints: Place, name: str) -> ServingModel:
    """A version of a lineage: its full checkpoint, or the one before it and the deltas that lead on.

    Raises:
        BrokenCheckpointError: it is not there any more, or not whole.
        ValueError: no name of a version.
    """
    lineage, _, number = name.rpartition("/")
    if not lineage or not number.isdecimal():
        raise ValueError(f"{name} is not <lineage>/<version>")
    version = int(number)
    if version in full_versions(checkpoints / lineage):
        return read_serving(version_path(checkpoints, lineage, version))
    path = delta_path(checkpoints, lineage, version)
    try:
        link = Link(version, hashlib.sha256(read(path)).hexdigest())
    except OSError as error:
        raise BrokenCheckpointError(f"there is neither a full checkpoint nor a delta of {name}") from error
    return rebuild(link, checkpoints / lineage).serving


def _scored(slate: Recommendation, clicks: tuple[SeenClick, ...], forgotten: int, serving: ServingModel) -> Explanation:
    catalogue, network = serving.catalogue, serving.model
    row_T = catalogue.rows_of(click.item_id for click in clicks)
    known = [place for place, row in enumerate(row_T.tolist()) if row != PADDING][-network.settings.max_length :]
    if not known:
        said = Again(status="counted", what="the model knew none of the clicks; the slate is of what was popular")
        return Explanation(slate=slate, clicks=clicks, forgotten=forgotten, again=said)
    looked = looked_at(network, torch.from_numpy(row_T[known]))
    attention = dict(zip(known, looked.attention_NHT.mean(dim=(0, 1)).tolist(), strict=True))
    told = tuple(msgspec.structs.replace(click, attention=attention.get(nth)) for nth, click in enumerate(clicks))
    logged = {item.item_id: item.score for item in slate.items if item.score is not None}
    rows = catalogue.rows_of(logged)
    score_I = network.item_RD[torch.from_numpy(rows)].detach() @ looked.hidden_D
    scores = dict(zip(logged, score_I.tolist(), strict=True))
    return Explanation(slate=slate, clicks=told, forgotten=forgotten, again=_compared(slate, scores, forgotten, logged))


def _compared(slate: Recommendation, scores: dict[str, float], forgotten: int, logged: dict[str, float]) -> Again:
    furthest = max((abs(scores[item_id] - score) for item_id, score in logged.items()), default=0.0)
    if furthest <= AGREES_WITHIN:
        what = f"scores computed again from {slate.model_version} agree with the logged ones"
        return Again(status="agrees", what=what, scores=scores)
    why = "some of the clicks that it read are forgotten" if forgotten else "the clicks or the ranker were others"
    what = f"scores computed again from {slate.model_version} differ by up to {furthest:.3g}: {why}"
    return Again(status="differs", what=what, scores=scores)


def _records(kafka: KafkaSettings, name: str, user_id: str | None) -> Iterator[ConsumerRecord]:
    """What stands on a topic now: in the user's partition, or in all where no user is named."""
    with clients.consumer(kafka) as consumer:
        partitions: list[TopicPartition] = partitions_of(consumer, kafka.topic(name))
        if user_id is not None:
            partitions = [partitions[partition_of(user_id, partitions=len(partitions))]]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(_POLL_MS).values():
                yield from records
