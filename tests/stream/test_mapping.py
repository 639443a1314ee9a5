"""A company's own events, read as ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_letters import Headers
from stream.events import Click, Impression, Item, Recommendation, SeenItem
from stream.mapping.reading import Mapper, Misfit, Reading, misfit_error
from stream.mapping.settings import MappingSettings, SourceSettings
from stream.mapping.times import to_ms

AT_MS = 1_700_000_000_000
NO_HEADERS: Headers = []


class Raw(NamedTuple):
    value: bytes | None
    topic: str = "shop.events"
    partition: int = 3
    offset: int = 42
    key: bytes | None = b"session-9"
    headers: Headers = NO_HEADERS
    timestamp: int = AT_MS


def reading(message: Any, *sources: dict[str, Any], **raw: Any) -> Reading:  # noqa: ANN401 - whatever a company sends
    value = message if isinstance(message, bytes | None) else msgspec.json.encode(message)
    tables = tuple(SourceSettings.model_validate({"topic": "shop.events", **source}) for source in sources)
    return Mapper(MappingSettings(sources=tables)).read(Raw(value, **raw))


CLICKS = {
    "record": "clicks",
    "only_if": "type == 'product_click'",
    "fields": {"event_id": "id", "user_id": "who.id", "item_id": "product.sku", "timestamp_ms": "at"},
}
CLICK = {"type": "product_click", "id": "e1", "who": {"id": 7}, "product": {"sku": "s1"}, "at": AT_MS}


def test_fields_stand_where_the_source_says_and_numbers_become_ids() -> None:
    (mapped,) = reading(CLICK, CLICKS).mapped

    assert (mapped.record, mapped.key, mapped.ordinal) == ("clicks", "7", 0)
    assert mapped.event == Click(event_id="e1", user_id="7", item_id="s1", timestamp_ms=AT_MS)


def test_one_topic_has_many_kinds_of_event_and_each_goes_its_way() -> None:
    seen = {
        "record": "impressions",
        "only_if": "type == 'list_view'",
        "fields": {"user_id": "who.id", "timestamp_ms": "at", "items": "products[].{item_id: sku, position: rank}"},
        "constants": {"policy": "our old one"},
    }
    message = {"type": "list_view", "who": {"id": "u"}, "at": AT_MS, "products": [{"sku": 1, "rank": 0}, {"sku": "b"}]}

    assert [one.record for one in reading(CLICK, CLICKS, seen).mapped] == ["clicks"]
    (mapped,) = reading(message, CLICKS, seen).mapped
    assert mapped.event == Impression(
        event_id="shop.events-3-42-0",
        user_id="u",
        timestamp_ms=AT_MS,
        items=(SeenItem(item_id="1", position=0), SeenItem(item_id="b")),
        policy="our old one",
    )
    assert reading({"type": "login"}, CLICKS, seen) == Reading([], [])
    assert reading({"type": "login"}, CLICKS, seen).outcome == "passed_over"


def test_a_list_of_events_gives_each_its_own_ordinal_and_the_bad_one_does_not_take_the_others_along() -> None:
    batch = {
        "record": "clicks",
        "each": "hits",
        "fields": {"user_id": "$message.visitor", "item_id": "sku", "timestamp_ms": "$timestamp"},
    }
    hits = [{"sku": "a"}, {"sku": ""}, {"sku": "c"}]

    read = reading({"visitor": "v", "hits": hits}, batch)

    assert [(one.ordinal, one.event.event_id, one.event.item_id) for one in read.mapped if one.event] == [  # type: ignore[attr-defined]  # they are clicks
        (0, "shop.events-3-42-0", "a"),
        (2, "shop.events-3-42-2", "c"),
    ]
    assert [(one.ordinal, one.reason) for one in read.misfits] == [(1, "invalid")]
    assert "event 1: item_id has 0 bytes" in str(misfit_error(read.misfits))
    assert read.outcome == "dead"


@pytest.mark.parametrize(
    ("source", "message", "reason"),
    [
        ({}, {**CLICK, "at": AT_MS // 1000}, "looks like seconds"),
        ({}, {**CLICK, "at": True}, "True is no number of ms"),
        ({"timestamp": "iso8601"}, CLICK, "is no text to be read as iso8601"),
        ({"timestamp": "%Y"}, {**CLICK, "at": "soon"}, "does not match format"),
        ({}, {**CLICK, "who": {}}, "missing required field `user_id` (from `who.id`)"),
        ({}, {**CLICK, "who": {"id": 1.5}}, "`$.user_id` (from `who.id`)"),
        ({"each": "hits"}, CLICK, "`hits` is no list of events"),
        ({"each": "@"}, [CLICK] * 1_001, "1001 events in one message"),
        ({"only_if": "length(@) > `1` && starts_with(id, 'e')"}, {**CLICK, "id": 5}, "does not fit this event"),
        ({}, b"\xff", "not JSON"),
        ({}, b"[" * 100_000, "not JSON"),
        ({}, None, "the value is null"),
        ({"decoder": "cloudevents"}, CLICK, "no CloudEvent"),
    ],
)
def test_what_does_not_fit_says_why(source: dict[str, Any], message: Any, reason: str) -> None:  # noqa: ANN401
    read = reading(message, {**CLICKS, **source})

    assert not read.mapped
    assert reason in read.misfits[0].message


@pytest.mark.parametrize(
    ("written", "written_in"),
    [
        (AT_MS, "ms"),
        (AT_MS // 1_000, "s"),
        (1_700_000_000.0, "s"),
        ("1700000000", "s"),
        (AT_MS * 1_000, "us"),
        (AT_MS * 1_000_000 + 999_999, "ns"),
        ("2023-11-14T22:13:20Z", "iso8601"),
        ("2023-11-14T23:13:20.000+01:00", "iso8601"),
        ("14.11.2023 22:13:20", "%d.%m.%Y %H:%M:%S"),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), "ms"),
    ],
)
def test_a_time_is_read_in_whatever_it_was_written(written: object, written_in: str) -> None:
    assert to_ms(written, written_in) == AT_MS


@given(at_ms=st.integers(0, 4_102_444_800_000))
def test_no_millisecond_is_lost_between_units(at_ms: int) -> None:
    assert to_ms(at_ms * 1_000_000, "ns") == to_ms(at_ms * 1_000, "us") == to_ms(at_ms / 1_000, "s") == at_ms


def test_cloud_events_are_read_in_both_modes() -> None:
    source = {
        "record": "clicks",
        "decoder": "cloudevents",
        "only_if": "type == 'shop.click'",
        "timestamp": "iso8601",
        "fields": {"event_id": "id", "user_id": "data.user", "item_id": "data.sku", "timestamp_ms": "time"},
    }
    payload = {"user": "u", "sku": "s"}
    attributes = {
        "specversion": "1.0",
        "id": "e",
        "type": "shop.click",
        "source": "/shop",
        "time": "2023-11-14T22:13:20Z",
    }
    structured = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    expected = Click(event_id="e", user_id="u", item_id="s", timestamp_ms=AT_MS)

    binary = reading(payload, source, headers=[(f"ce_{name}", value.encode()) for name, value in attributes.items()])
    whole = reading({**attributes, "data": payload}, source, headers=structured)
    encoded = reading({**attributes, "data_base64": "eyJ1c2VyIjoidSIsInNrdSI6InMifQ=="}, source, headers=structured)

    assert [one.event for read in (binary, whole, encoded) for one in read.mapped] == [expected] * 3


def test_a_tombstone_of_a_companys_items_withdraws_the_item() -> None:
    items = {"record": "items", "fields": {"item_id": "sku", "title": "name", "available": "stock > `0`"}}

    described = reading({"sku": 5, "name": "Tea", "stock": 0}, items).mapped
    withdrawn = reading(None, items, key=b"5").mapped

    assert [(one.key, one.event) for one in described] == [("5", Item(item_id="5", title="Tea", available=False))]
    assert [(one.key, one.event) for one in withdrawn] == [("5", None)]
    assert reading(None, items, key=None).misfits[0].reason == "key"


def test_slates_of_another_recommender_may_be_bare_ids() -> None:
    slates = {
        "record": "recommendations",
        "timestamp": "kafka",
        "fields": {"request_id": "id", "user_id": "user", "items": "shown[].{item_id: @, position: `0`}"},
        "constants": {"policy": "legacy"},
    }

    (mapped,) = reading({"id": 1, "user": 2, "shown": [9]}, slates).mapped

    assert isinstance(mapped.event, Recommendation)
    assert (mapped.event.generated_at_ms, mapped.event.items[0].item_id) == (AT_MS, "9")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fields": {**CLICKS["fields"], "colour": "c"}}, "clicks have no field colour"),  # type: ignore[dict-item]  # its fields
        ({"fields": {"user_id": "u"}}, "clicks need item_id"),
        ({"only_if": "type =="}, "neither a dotted path nor JMESPath"),
        ({"timestamp": "minutes"}, "timestamp `minutes` is none of"),
        ({"decoder": "xml"}, "'json', 'cloudevents' or 'confluent'"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_when_the_settings_are_read(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSettings.model_validate({"topic": "shop.events", **CLICKS, **wrong})


def test_the_first_reasons_are_told_and_how_many_more_there_are() -> None:
    error = misfit_error([Misfit(number, "invalid", "bad") for number in range(5)])

    assert str(error) == "event 0: bad; event 1: bad; event 2: bad; and 2 more"


@given(
    message=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["type", "id", "who", "product", "at", "sku"]), inner)
        ),
    )
)
def test_whatever_json_comes_it_is_mapped_passed_over_or_a_misfit(message: Any) -> None:  # noqa: ANN401 - anything
    read = reading(message, {**CLICKS, "only_if": None})

    assert len(read.mapped) + len(read.misfits) == 1
