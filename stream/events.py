"""The records on the topics, with their bounds: a broken one cannot exist.

Clicks, impressions, requests, recommendations, items and model announcements are JSON, so that any Kafka client can
write and read them. Unknown fields are ignored on reading, so that a record may grow. Every text id holds 1 to 256
bytes of UTF-8 without NUL; every timestamp is in milliseconds since 1970 and lies between 1980 and 2100.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_ID_BYTES = 256
EARLIEST_MS = 315_532_800_000  # 1980-01-01
LATEST_MS = 4_102_444_800_000  # 2100-01-01
MAX_SLATE_ITEMS = 1_000
MAX_CANDIDATES = 10_000
MODEL_NAME = "sasrec"
"""The model that is announced on `models`; announcements of another name are not ours."""
MAX_RIVALS = 32
MAX_WAIT_MS = 60_000
SLACK = 1e-6
"""By how much shares that add up to one may miss it."""

PropensityKind = Literal["exact", "estimated", "none"]
Source = Literal["exploit", "explore", "fixed"]

Position = Annotated[int, Meta(ge=0, lt=MAX_SLATE_ITEMS)]
Offset = Annotated[int, Meta(ge=0)]
# These three state their bounds in the JSON Schema; the records check them when made, with words that say what to do.
Id = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_ID_BYTES})]
TimestampMs = Annotated[int, Meta(extra_json_schema={"minimum": EARLIEST_MS, "maximum": LATEST_MS})]
Propensity = Annotated[float, Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": 1})]
RouterProbability = Annotated[float, Meta(gt=0.0, le=1.0)]
RivalPropensity = Annotated[float, Meta(ge=0.0, le=1.0)]


def check_id(text: str, *, field: str) -> None:
    """Refuses an id that could not travel as a Kafka key or be stored.

    Raises:
        ValueError: empty, longer than 256 bytes of UTF-8, holding NUL or a lone surrogate.
    """
    if text.isascii() and 1 <= len(text) <= MAX_ID_BYTES and "\0" not in text:
        return  # the usual case, without encoding
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} holds a lone surrogate; send valid Unicode") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise ValueError(f"{field} has {size} bytes; send 1 to {MAX_ID_BYTES}")
    if "\0" in text:
        raise ValueError(f"{field} holds a NUL; send text without it")


def check_timestamp(timestamp_ms: int, *, field: str = "timestamp_ms") -> None:
    """Refuses a time outside 1980 to 2100, and says so when it was probably sent in seconds.

    Raises:
        ValueError: outside the bounds.
    """
    if EARLIEST_MS <= timestamp_ms <= LATEST_MS:
        return
    if EARLIEST_MS <= timestamp_ms * 1000 <= LATEST_MS:
        raise ValueError(f"{field} {timestamp_ms} looks like seconds; send milliseconds")
    raise ValueError(f"{field} {timestamp_ms} is not between 1980 and 2100; send milliseconds since 1970")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What every record on a topic is: immutable, compared by value, checked when it is made."""


class Click(Record, frozen=True, kw_only=True):
    """A user chose an item."""

    event_id: Id
    user_id: Id
    item_id: Id
    timestamp_ms: TimestampMs
    request_id: Id | None = None
    """The slate the item was chosen from; absent for a click nobody served (organic) or where the page does not
    know.
    """
    position: Position | None = None

    def __post_init__(self) -> None:
        check_id(self.event_id, field="event_id")
        check_id(self.user_id, field="user_id")
        check_id(self.item_id, field="item_id")
        if self.request_id is not None:
            check_id(self.request_id, field="request_id")
        check_timestamp(self.timestamp_ms)


class SeenItem(Record, frozen=True, kw_only=True):
    """An item that came into the user's view."""

    item_id: Id
    position: Position | None = None
    propensity: Propensity | None = None
    """Only for logs of other systems; for a slate on `recommendations` the logged one counts, never the client's."""

    def __post_init__(self) -> None:
        check_id(self.item_id, field="item_id")
        check_propensity(self.propensity)


def check_propensity(propensity: float | None) -> None:
    """Refuses what is no probability of something that happened.

    Raises:
        ValueError: NaN, zero, negative or above one.
    """
    if propensity is not None and not (math.isfinite(propensity) and 0.0 < propensity <= 1.0):
        raise ValueError(f"propensity {propensity} is not in (0, 1]; leave it out where it is unknown")


class Impression(Record, frozen=True, kw_only=True):
    """Which items of a slate the user actually saw."""

    event_id: Id
    user_id: Id
    timestamp_ms: TimestampMs
    items: Annotated[tuple[SeenItem, ...], Meta(min_length=1, max_length=MAX_SLATE_ITEMS)]
    request_id: Id | None = None
    policy: str | None = None
    """The recommender that served it, where no slate on `recommendations` says so."""

    def __post_init__(self) -> None:
        check_id(self.event_id, field="event_id")
        check_id(self.user_id, field="user_id")
        if self.request_id is not None:
            check_id(self.request_id, field="request_id")
        check_timestamp(self.timestamp_ms)


class Request(Record, frozen=True, kw_only=True):
    """A page was opened: recommend now, click or not."""

    event_id: Id
    """Becomes the request_id of the answer."""
    user_id: Id
    timestamp_ms: TimestampMs
    k: Annotated[int, Meta(ge=1, le=MAX_SLATE_ITEMS)] | None = None
    """How many items; `policy.slate_size` where absent."""
    candidates: Annotated[tuple[Id, ...], Meta(max_length=MAX_CANDIDATES)] | None = None
    """Only these may be recommended; the whole catalogue where absent."""
    exclude: Annotated[tuple[Id, ...], Meta(max_length=MAX_CANDIDATES)] = ()
    fresh_through_ms: TimestampMs | None = None
    """The slate shall know a click of this user at or after this event time; it waits for it, for a while."""
    fresh_through_offset: Offset | None = None
    """The slate shall know the click at this offset of the user's partition of `clicks`; it waits for it, too."""
    wait_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)] | None = None
    """How long to wait for such a click, from the request's arrival; never longer than `scoring.max_fresh_wait_ms`,
    which counts where this is absent.
    """

    @property
    def wants_fresh(self) -> bool:
        """Whether the slate shall wait for a click."""
        return self.fresh_through_ms is not None or self.fresh_through_offset is not None

    def __post_init__(self) -> None:
        check_id(self.event_id, field="event_id")
        check_id(self.user_id, field="user_id")
        check_timestamp(self.timestamp_ms)
        if self.fresh_through_ms is not None:
            check_timestamp(self.fresh_through_ms, field="fresh_through_ms")


class Cause(Record, frozen=True, kw_only=True):
    """The message that led to this record."""

    topic: str
    partition: Annotated[int, Meta(ge=0)]
    offset: Offset
    arrived_at_ms: int
    """Kafka's timestamp of that message: wall-clock time, also in a replay of old events."""


class RecommendedItem(Record, frozen=True, kw_only=True):
    """One slot of a slate."""

    item_id: Id
    position: Position
    score: float | None = None
    """Before noise; absent for an item that no model scored."""
    source: Source = "exploit"
    propensity: Propensity | None = None
    """The exact probability that this item is anywhere in this slate (float64, in (0, 1]); absent where unknown."""
    propensity_kind: PropensityKind = "none"
    rival_propensities: Annotated[tuple[RivalPropensity, ...], Meta(max_length=MAX_RIVALS)] = ()
    """The probability that each of the slate's `rivals` would have shown this item; 0 where it could not."""

    def __post_init__(self) -> None:
        check_id(self.item_id, field="item_id")
        check_propensity(self.propensity)
        if (self.propensity is None) != (self.propensity_kind == "none"):
            raise ValueError("a propensity and its kind come together: exact or estimated with a number, none without")


class Rival(Record, frozen=True, kw_only=True):
    """Another recommender that could have got the request."""

    policy: Id
    router_probability: RouterProbability

    def __post_init__(self) -> None:
        check_id(self.policy, field="policy")


class Recommendation(Record, frozen=True, kw_only=True):
    """A slate, as it was served, with all that is needed to weigh what comes of it (docs/propensities.md section 2)."""

    request_id: Id
    user_id: Id
    policy: Id
    generated_at_ms: TimestampMs
    items: Annotated[tuple[RecommendedItem, ...], Meta(max_length=MAX_SLATE_ITEMS)]
    surface: str = "default"
    model_version: str | None = None
    """`<lineage>/<version>` of the one checkpoint that scored the whole slate; absent for other recommenders."""
    trained_through_ms: int | None = None
    """Event time of the newest click the model has learnt from."""
    trained_through_arrival_ms: int | None = None
    """Kafka's timestamp of that click: the model's age in wall-clock time."""
    router_probability: RouterProbability = 1.0
    """The chance that this recommender got the request."""
    rivals: Annotated[tuple[Rival, ...], Meta(max_length=MAX_RIVALS)] = ()
    """The other recommenders of the surface whose propensities are known (the balance heuristic's inputs)."""
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    exploration_slots: Annotated[int, Meta(ge=0)] | None = None
    eligible_count: Annotated[int, Meta(ge=0)] | None = None
    candidate_count: Annotated[int, Meta(ge=0)] | None = None
    history_length: Annotated[int, Meta(ge=0)] | None = None
    """Items in the user's sequence as this slate knew it."""
    sequence_position: Annotated[int, Meta(ge=0)] | None = None
    """How many clicks of this user had ever been folded into that sequence."""
    missing: Annotated[int, Meta(ge=0)] = 0
    """Items fewer than were asked for, because no more could be served."""
    is_fresh: bool | None = None
    """Whether the click that the request waited for came in time; absent where it waited for none."""
    seed: int | None = None
    """Repeats the draw, given the scores."""
    cause: Cause | None = None

    def __post_init__(self) -> None:
        check_id(self.request_id, field="request_id")
        check_id(self.user_id, field="user_id")
        check_id(self.policy, field="policy")
        check_timestamp(self.generated_at_ms, field="generated_at_ms")
        if len({item.item_id for item in self.items}) < len(self.items):
            raise ValueError("an item stands twice in the slate; serve each once")
        if len({item.position for item in self.items}) < len(self.items):
            raise ValueError("two items stand at one position; give each a slot of its own")
        if self.rivals:
            self._check_rivals()

    def _check_rivals(self) -> None:
        if self.router_probability + sum(rival.router_probability for rival in self.rivals) > 1.0 + SLACK:
            raise ValueError("router probabilities add up to more than 1; each request goes to one recommender")
        if any(len(item.rival_propensities) != len(self.rivals) for item in self.items):
            raise ValueError("rival_propensities and rivals differ in number; give every item one for each rival")


class Item(Record, frozen=True, kw_only=True):
    """What the catalogue says of an item; a tombstone (null value) withdraws it."""

    item_id: Id
    title: Annotated[str, Meta(max_length=1_000)] | None = None
    category: Annotated[str, Meta(max_length=256)] | None = None
    available: bool = True

    def __post_init__(self) -> None:
        check_id(self.item_id, field="item_id")


class ModelAnnouncement(Record, frozen=True, kw_only=True):
    """A version of the model that scoring workers shall serve: a full checkpoint, or what changed since the one before.

    Under its key (`key`) the newest one of a lineage and of a trainer's term is kept.
    """

    model: str
    lineage: str
    """A full retrain begins a new lineage; versions count within one."""
    version: Annotated[int, Meta(ge=1)]
    path: str
    """The checkpoint's folder or the delta's file, as the trainer sees it: a path or a URL."""
    manifest_sha256: str
    """Of the checkpoint's manifest; of the file itself where it is a delta."""
    created_at_ms: int
    examples_trained: Annotated[int, Meta(ge=0)]
    trained_through_ms: int | None = None
    trained_through_arrival_ms: int | None = None
    kind: Literal["full", "delta"] = "full"
    delta_sha256: str | None = None
    """Of the delta that leads to the same version as the full checkpoint: who has the version before it takes that."""
    generation: Annotated[int, Meta(ge=0)] = 0
    """Rank of the lineage: a higher one takes the place of a lower one, whichever was announced last."""
    epoch: Annotated[int, Meta(ge=0)] = 0
    """Number of the trainer's term: within a lineage, what a newer trainer announces comes after an older one's."""
    offsets: dict[str, Offset] = {}
    """Per partition of `examples`, the next one that this version has not learnt."""

    @property
    def name(self) -> str:
        """The version as recommendations carry it."""
        return f"{self.lineage}/{self.version}"

    @property
    def key(self) -> str:
        """What a compacted topic keeps one of."""
        return f"{self.model}/{self.lineage}/{self.epoch}"

    def supersedes(self, other: ModelAnnouncement | None) -> bool:
        """Whether it is to be served rather than the other, in whatever order the two were read.

        Of lineages that were announced without a rank, by an older sasrec-stream, the one read last counts.
        """
        if other is None or self.generation != other.generation:
            return other is None or self.generation > other.generation
        if self.lineage == other.lineage:
            return (self.epoch, self.version) >= (other.epoch, other.version)
        return self.generation == 0 or self.lineage > other.lineage
