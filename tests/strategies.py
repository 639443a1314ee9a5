"""What hypothesis draws: the events of one user, and the orders in which a worker may read them."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from stream.draft import Arrival
from stream.events import Click, Impression, Recommendation, RecommendedItem, SeenItem
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS

USER = "u"
START_MS = 1_700_000_000_000
SPAN_MS = 900_000
"""All events of a history lie within it: half the default attribution window."""

Event = Click | Impression | Recommendation

items = st.sampled_from([f"i{number}" for number in range(6)])
times = st.integers(START_MS, START_MS + SPAN_MS)
slate_names = st.sampled_from(["s0", "s1", "s2", "s3"])


class Read(NamedTuple):
    """An event where the worker read it."""

    event: Event
    arrival: Arrival


class History(NamedTuple):
    """One user's events per topic, in the order of that topic."""

    clicks: tuple[Click, ...]
    impressions: tuple[Impression, ...]
    recommendations: tuple[Recommendation, ...]


def arrivals(source: str, events: tuple[Event, ...]) -> list[Read]:
    """Events at the offsets of their topic, from zero."""
    return [Read(event, Arrival(source, 0, offset, START_MS + offset)) for offset, event in enumerate(events)]


@st.composite
def clicks(draw: st.DrawFn, *, request_ids: st.SearchStrategy[str | None]) -> tuple[Click, ...]:
    """Clicks in any order of time, some of them twice."""
    drawn = draw(st.lists(st.tuples(items, times, request_ids), max_size=6))
    return tuple(
        Click(event_id=f"c{number}", user_id=USER, item_id=item, timestamp_ms=at, request_id=name)
        for number, (item, at, name) in enumerate(drawn)
    )


@st.composite
def recommendations(draw: st.DrawFn) -> tuple[Recommendation, ...]:
    """Slates in the order in which they were generated, now and then one twice."""
    names = draw(st.lists(slate_names, max_size=5))
    at = sorted(draw(st.lists(times, min_size=len(names), max_size=len(names))))
    return tuple(_recommendation(draw, name, at_ms) for name, at_ms in zip(names, at, strict=True))


def _recommendation(draw: st.DrawFn, name: str, at_ms: int) -> Recommendation:
    held = draw(st.lists(items, min_size=1, max_size=4, unique=True))
    return Recommendation(
        request_id=name,
        user_id=USER,
        policy="policy",
        generated_at_ms=at_ms,
        surface=draw(st.sampled_from(["home", "cart"])),
        items=tuple(
            RecommendedItem(item_id=item, position=slot, propensity=0.25, propensity_kind="exact")
            for slot, item in enumerate(held)
        ),
    )


@st.composite
def impressions(draw: st.DrawFn, *, request_ids: st.SearchStrategy[str | None]) -> tuple[Impression, ...]:
    """What was seen, item by item or many at once."""
    drawn = draw(st.lists(st.tuples(st.lists(items, min_size=1, max_size=3), times, request_ids), max_size=4))
    return tuple(
        Impression(
            event_id=f"v{number}",
            user_id=USER,
            timestamp_ms=at,
            items=tuple(SeenItem(item_id=item) for item in seen),
            request_id=name,
        )
        for number, (seen, at, name) in enumerate(drawn)
    )


named_histories = st.builds(
    History,
    clicks(request_ids=slate_names),
    impressions(request_ids=slate_names),
    recommendations(),
)
"""Everything names its slate; some slates are never logged, some never seen."""

unnamed_histories = st.builds(History, clicks(request_ids=st.none()), impressions(request_ids=st.none()), st.just(()))
"""As other systems log: nothing names a slate, and nobody says what was served."""

any_histories = st.builds(
    History,
    clicks(request_ids=st.none() | slate_names),
    impressions(request_ids=st.none() | slate_names),
    recommendations(),
)


@st.composite
def interleaved(draw: st.DrawFn, history: History) -> list[Read]:
    """One order in which the topics may be read, each in its own order."""
    queues = [
        arrivals(CLICKS, history.clicks),
        arrivals(IMPRESSIONS, history.impressions),
        arrivals(RECOMMENDATIONS, history.recommendations),
    ]
    turns = draw(st.permutations([number for number, queue in enumerate(queues) for _ in queue]))
    readers = [iter(queue) for queue in queues]
    return [next(readers[turn]) for turn in turns]


@st.composite
def read_twice(draw: st.DrawFn, histories: st.SearchStrategy[History]) -> tuple[list[Read], list[Read]]:
    """The same history in two orders."""
    history = draw(histories)
    return draw(interleaved(history)), draw(interleaved(history))
