"""A broken record cannot exist, and its refusal says what to do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stream.events import Click, Impression, Recommendation, RecommendedItem, Request, Rival, SeenItem

NOW_MS = 1_700_000_000_000


FIELDS: dict[str, Any] = {"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": NOW_MS}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_id": ""}, "user_id has 0 bytes"),
        ({"item_id": "ü" * 129}, "item_id has 258 bytes"),
        ({"event_id": "a\0b"}, "event_id holds a NUL"),
        ({"user_id": "\ud800"}, "lone surrogate"),
        ({"timestamp_ms": NOW_MS // 1000}, "looks like seconds"),
        ({"timestamp_ms": 0}, "not between 1980 and 2100"),
        ({"timestamp_ms": 5_000_000_000_000}, "not between 1980 and 2100"),
    ],
)
def test_a_click_out_of_bounds_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Click(**FIELDS | changes)


def test_an_id_of_256_bytes_is_taken() -> None:
    assert Click(**FIELDS | {"user_id": "u" * 256}).user_id == "u" * 256


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_propensity_that_is_no_probability_is_refused(propensity: float) -> None:
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        SeenItem(item_id="i", propensity=propensity)


def test_a_propensity_without_its_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="come together"):
        RecommendedItem(item_id="i", position=0, propensity=0.5)


def test_a_slate_with_an_item_twice_is_refused() -> None:
    twice = tuple(RecommendedItem(item_id="i", position=position) for position in range(2))

    with pytest.raises(ValueError, match="stands twice"):
        Recommendation(request_id="r", user_id="u", policy="p", generated_at_ms=NOW_MS, items=twice)


def test_a_slate_with_two_items_at_one_position_is_refused() -> None:
    crowded = tuple(RecommendedItem(item_id=item_id, position=3) for item_id in "ab")

    with pytest.raises(ValueError, match="one position"):
        Recommendation(request_id="r", user_id="u", policy="p", generated_at_ms=NOW_MS, items=crowded)


@pytest.mark.parametrize(
    ("shares", "propensities", "reason"),
    [((0.5, 0.3), (0.1, 0.0), "add up to more than 1"), ((0.3, 0.2), (0.1,), "differ in number")],
)
def test_rivals_that_contradict_the_slate_are_refused(
    shares: tuple[float, ...], propensities: tuple[float, ...], reason: str
) -> None:
    rivals = tuple(Rival(policy=f"p{share}", router_probability=share) for share in shares)
    items = (RecommendedItem(item_id="i", position=0, rival_propensities=propensities),)

    with pytest.raises(ValueError, match=reason):
        Recommendation(
            request_id="r",
            user_id="u",
            policy="p",
            generated_at_ms=NOW_MS,
            items=items,
            router_probability=0.5,
            rivals=rivals,
        )


def test_freshness_in_seconds_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match=r"fresh_through_ms .* looks like seconds"):
        Request(event_id="e", user_id="u", timestamp_ms=NOW_MS, fresh_through_ms=NOW_MS // 1_000)


def test_an_impression_of_nothing_is_refused() -> None:
    empty = {"event_id": "e", "user_id": "u", "timestamp_ms": NOW_MS, "items": []}

    with pytest.raises(msgspec.ValidationError, match="length >= 1"):
        msgspec.convert(empty, Impression)


def test_a_field_from_a_later_version_is_ignored() -> None:
    written = msgspec.json.encode(FIELDS | {"colour": "red"})

    assert msgspec.json.decode(written, type=Click) == Click(**FIELDS)
