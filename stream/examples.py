"""What the stream teaches the trainer: self-contained examples, MessagePack on the internal topic `examples`.

An example's id is the position of the event that caused it (topic, partition, offset) and an ordinal, and it stands in
the partition of that number. Examples of one source partition are sent in the order of their ids, so whatever arrives
twice repeats a prefix, and a reader that remembers one highest id per source partition drops every repeat (I1).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import msgspec

from stream.events import PropensityKind, Source


class ExampleId(NamedTuple):
    """Orders the examples of one source partition; `source` is the topic's name without the prefix (`clicks`)."""

    source: str
    partition: int
    offset: int
    ordinal: int


class Served(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the clicked item came before the user."""

    policy: str
    request_id: str
    position: int | None
    propensity: float | None
    propensity_kind: PropensityKind
    source: Source
    router_probability: float = 1.0
    rivals: tuple[tuple[float, float], ...] = ()
    """(router probability, propensity of this item) of every other recommender of the surface, where all are known."""
    clicks_since: int = 0
    """Of the newest items of the example's context, those chosen after the slate was drawn: without them it is the
    history at the time of the request, which the propensity is conditional on.
    """


class ClickExample(msgspec.Struct, frozen=True, array_like=True, tag="click", gc=False):
    """A click and the user's history just before it; sent at once."""

    id: ExampleId
    user_id: str
    context: tuple[str, ...]
    """Item ids before the click, oldest first; `served` tells how many of them are newer than the slate."""
    item_id: str
    timestamp_ms: int
    """Event time of the click."""
    arrived_at_ms: int
    """Kafka's timestamp of the event that caused the example (wall clock)."""
    served: Served | None
    """Absent for an organic click."""


class ShownItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One slot of a closed slate. `seen` is None where no impression said which items came into view."""

    item_id: str
    position: int | None
    propensity: float | None
    propensity_kind: PropensityKind
    source: Source
    seen: bool | None
    clicked: bool
    clicked_before: bool = False
    """An earlier example of this slate told of a click on it: in a correction it is neither chosen nor passed over."""


class SlateExample(msgspec.Struct, frozen=True, array_like=True, tag="slate", gc=False):
    """A slate whose window is over, or (`correction`) a click on it that came later.

    A correction repeats the slate with only the late item marked as clicked: its pairs with what nobody clicked are
    new, the others were learnt already.
    """

    id: ExampleId
    user_id: str
    context: tuple[str, ...]
    """The user's history when the slate was drawn, oldest first."""
    request_id: str
    policy: str
    items: tuple[ShownItem, ...]
    timestamp_ms: int
    """Event time at which the slate was served."""
    arrived_at_ms: int
    correction: bool = False


Example = ClickExample | SlateExample


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[Example]:
    return msgspec.msgpack.Decoder(Example)


def encode_example(example: Example) -> bytes:
    """MessagePack, arrays in field order; new fields are appended with a default."""
    return msgspec.msgpack.encode(example)


def decode_example(raw: bytes) -> Example:
    """Reads what `encode_example` wrote.

    Raises:
        msgspec.DecodeError: not an example; its subclass ValidationError says which field.
    """
    return _decoder().decode(raw)
