"""One slate: what was served at once, and what came of it. Pure functions over `sequences.Slate`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from stream.events import MAX_SLATE_ITEMS, Impression, PropensityKind, Recommendation, SeenItem
from stream.examples import Served, ShownItem
from stream.sequences import KINDS, SOURCES, ParkedClick, Slate, SlateClick

MAX_CLICKS = 32
"""Clicks kept of a slate, beyond the first on every slot."""
_FIXED, _EXPLOIT = (bytes([SOURCES.index(source)]) for source in ("fixed", "exploit"))
_KIND_PLACES = {kind: place for place, kind in enumerate(KINDS)}
_SLOTS = tuple(range(MAX_SLATE_ITEMS))
_NO_CHANCES = (None,) * MAX_SLATE_ITEMS
_NO_KINDS = bytes([KINDS.index("none")]) * MAX_SLATE_ITEMS
_NO_SLOTS: frozenset[int] = frozenset()
UNKNOWN_POLICY = "unknown"
"""Who served it is not known: no recommendation came, and the impression does not say."""


def recommended(recommendation: Recommendation) -> Slate:
    """A slate as `recommendations` logged it; nobody has seen it yet."""
    slots = recommendation.items
    return Slate(
        request_id=recommendation.request_id,
        policy=recommendation.policy,
        surface=recommendation.surface,
        served_at_ms=recommendation.generated_at_ms,
        items=tuple(slot.item_id for slot in slots),
        positions=_positions([slot.position for slot in slots]),
        propensities=_propensities([slot.propensity for slot in slots]),
        kinds=_kinds([slot.propensity_kind for slot in slots]),
        sources=bytes(SOURCES.index(slot.source) for slot in slots),
        router_probability=recommendation.router_probability,
        rivals=tuple(
            (rival.router_probability, tuple(slot.rival_propensities[nth] for slot in slots))
            for nth, rival in enumerate(recommendation.rivals)
        ),
    )


def glimpsed(impression: Impression, items: Sequence[SeenItem]) -> Slate:
    """A slate of which only an impression is known: it holds what is seen of it, each item once."""
    new = _once(items)
    propensities = [item.propensity for item in new]
    return Slate(
        request_id=impression.request_id or impression.event_id,
        policy=impression.policy or UNKNOWN_POLICY,
        surface=None,
        served_at_ms=impression.timestamp_ms,
        items=tuple([item.item_id for item in new]),
        positions=_positions([item.position for item in new]),
        propensities=_propensities(propensities),
        kinds=_kinds_of(propensities),
        sources=_EXPLOIT * len(new),
        seen=_SLOTS[: len(new)],
    )


def with_items(slate: Slate, items: Sequence[SeenItem]) -> Slate:
    """The slate with the items it did not hold, up to the bound of a slate.

    What a recommender did not serve and the page showed all the same was pinned there: `fixed`, without propensity.
    In a slate that nobody logged, the impression's own propensity counts.
    """
    held = slate.items
    new = [item for item in _once(items) if item.item_id not in held][: MAX_SLATE_ITEMS - len(held)]
    if not new:
        return slate
    logged = slate.surface is not None
    propensities = [None if logged else item.propensity for item in new]
    return replace(
        slate,
        items=held + tuple([item.item_id for item in new]),
        positions=_positions([*_each_position(slate), *[item.position for item in new]]),
        propensities=_propensities([*_each_propensity(slate), *propensities]),
        kinds=_kinds([*_each_kind(slate), *["none" if chance is None else "exact" for chance in propensities]]),
        sources=slate.sources + (_FIXED if logged else _EXPLOIT) * len(new),
    )


def completed(glimpse: Slate, logged: Slate) -> Slate:
    """The logged slate with what was seen and clicked of it before its recommendation was read."""
    whole = with_items(logged, [SeenItem(item_id=item_id) for item_id in glimpse.items])
    slot_of = {item_id: slot for slot, item_id in enumerate(whole.items)}
    moved = [slot_of.get(item_id) for item_id in glimpse.items]
    seen = sorted(slot for slot in (moved[slot] for slot in glimpse.seen) if slot is not None)
    placed = [(moved[click.slot], click) for click in glimpse.clicks]
    clicks = tuple(replace(click, slot=slot) for slot, click in placed if slot is not None)
    return replace(whole, seen=tuple(seen), clicks=clicks)


def is_known(slate: Slate) -> bool:
    """Whether anybody said who served it: its recommendation, or the impression of a log without such a topic."""
    return slate.surface is not None or slate.policy != UNKNOWN_POLICY


def age_order(slate: Slate) -> tuple[int, str]:
    """Orders slates by when they were served; the name decides between equals, so that no order of arrival does."""
    return slate.served_at_ms, slate.request_id


def newest_holding(slates: Sequence[Slate], item_id: str, at_ms: int, window_ms: int) -> Slate | None:
    """The newest slate that shows the item and had been served at most the window before."""
    holding = [
        slate
        for slate in slates
        if slate.served_at_ms <= at_ms <= slate.served_at_ms + window_ms and item_id in slate.items
    ]
    return max(holding, key=age_order, default=None)


def clicked(slate: Slate) -> frozenset[int]:
    """Slots to which a click belongs."""
    return frozenset([click.slot for click in slate.clicks]) if slate.clicks else _NO_SLOTS


def click_on(slate: Slate, item_id: str, at_ms: int) -> SlateClick | None:
    """The click on an item at a time, if it belongs to the slate."""
    return next(
        (click for click in slate.clicks if click.at_ms == at_ms and slate.items[click.slot] == item_id),
        None,
    )


def is_quiet(slate: Slate) -> bool:
    """Nobody saw it and nobody clicked: it teaches nothing (docs/propensities.md section 4) and is never sent."""
    return not (slate.seen or slate.clicks)


def with_click(slate: Slate, click: SlateClick) -> Slate:
    """The slate with the click; of many on one slot not all are kept."""
    is_again = len(slate.clicks) >= MAX_CLICKS and click.slot in clicked(slate)
    if click in slate.clicks or is_again:
        return slate
    return replace(slate, clicks=(*slate.clicks, click))


def with_named_click(slate: Slate, click: ParkedClick) -> Slate:
    """The slate with a click that named it; an item that it does not hold was pinned there."""
    whole = with_items(slate, [SeenItem(item_id=click.item_id, position=click.position)])
    if click.item_id not in whole.items:
        return slate
    return with_click(whole, SlateClick(whole.items.index(click.item_id), click.at_ms, named=True))


def without_unnamed(slate: Slate) -> Slate:
    """The slate with only the clicks that named it: whose the others are depends on when it was served."""
    return replace(slate, clicks=tuple(click for click in slate.clicks if click.named))


def without_click(slate: Slate, click: SlateClick) -> Slate:
    """The slate after a newer one turned out to own the click."""
    return replace(slate, clicks=tuple(other for other in slate.clicks if other != click))


def served(slate: Slate, slot: int, position: int | None, *, clicks_since: int) -> Served:
    """How the item of a slot came before the user; the click's `position` counts where the slate knows none."""
    known = (slate.positions or _SLOTS)[slot]
    return Served(
        policy=slate.policy,
        request_id=slate.request_id,
        position=position if known is None else known,
        propensity=(slate.propensities or _NO_CHANCES)[slot],
        propensity_kind=KINDS[(slate.kinds or _NO_KINDS)[slot]],
        source=SOURCES[slate.sources[slot]],
        router_probability=slate.router_probability,
        rivals=tuple((share, chances[slot]) for share, chances in slate.rivals if slot < len(chances)),
        clicks_since=clicks_since,
    )


def served_by_somebody(click: ParkedClick) -> Served:
    """How a click is told whose slate never became known."""
    assert click.request_id is not None
    return Served(UNKNOWN_POLICY, click.request_id, click.position, None, "none", "exploit")


def shown(slate: Slate, clicked: Collection[int]) -> tuple[ShownItem, ...]:
    """The slots as an example tells them, with those of `clicked` marked; other clicks were told before."""
    before = {click.slot for click in slate.clicks if click.slot not in clicked} if slate.clicks else _NO_SLOTS
    positions, propensities = slate.positions or _SLOTS, slate.propensities or _NO_CHANCES
    kinds, sources, seen = slate.kinds or _NO_KINDS, slate.sources, frozenset(slate.seen)
    return tuple(
        [
            ShownItem(
                item_id,
                positions[slot],
                propensities[slot],
                KINDS[kinds[slot]],
                SOURCES[sources[slot]],
                slot in seen if seen else None,
                slot in clicked,
                slot in before,
            )
            for slot, item_id in enumerate(slate.items)
        ]
    )


def _once(items: Sequence[SeenItem]) -> list[SeenItem]:
    if len(items) == 1:
        return list(items)
    first: dict[str, SeenItem] = {}
    for item in items:
        first.setdefault(item.item_id, item)
    return list(first.values())


def _positions(positions: Sequence[int | None]) -> tuple[int | None, ...]:
    all_of_them = tuple(positions)
    return () if all_of_them == _SLOTS[: len(all_of_them)] else all_of_them


def _propensities(propensities: Sequence[float | None]) -> tuple[float | None, ...]:
    return () if propensities.count(None) == len(propensities) else tuple(propensities)


def _kinds_of(propensities: Sequence[float | None]) -> bytes:
    if propensities.count(None) == len(propensities):
        return b""
    return _kinds(["none" if chance is None else "exact" for chance in propensities])


def _kinds(kinds: Sequence[PropensityKind]) -> bytes:
    return b"" if kinds.count("none") == len(kinds) else bytes([_KIND_PLACES[kind] for kind in kinds])


def _each_position(slate: Slate) -> Sequence[int | None]:
    return slate.positions or _SLOTS[: len(slate.items)]


def _each_propensity(slate: Slate) -> Sequence[float | None]:
    return slate.propensities or (None,) * len(slate.items)


def _each_kind(slate: Slate) -> Sequence[PropensityKind]:
    return [KINDS[kind] for kind in slate.kinds or _NO_KINDS[: len(slate.items)]]
