"""How records may change: what was right by the schemas of version 1 stays right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from deploy.cli.schemas import refuse_breaking_changes
from stream.events import Click, Impression, Recommendation, Request
from stream.evolution import Schema, breaking_changes
from stream.schemas import PUBLIC_RECORDS, schema_of

RELEASED = Path(__file__).parent / "released" / "v1"


@pytest.mark.parametrize("topic", PUBLIC_RECORDS)
def test_nothing_breaks_those_who_write_and_read_version_1(topic: str) -> None:
    released = json.loads((RELEASED / f"{topic}.schema.json").read_text())

    assert breaking_changes(released, schema_of(PUBLIC_RECORDS[topic])) == []


OLD: Schema = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "maxLength": 256},
        "slot": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None},
        "kind": {"enum": ["a", "b"]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Slot"}},
    },
    "$defs": {"Slot": {"type": "object", "required": [], "properties": {"sku": {"type": "string"}}}},
}


def changed(**properties: object) -> Schema:
    kept = {name: value for name, value in OLD["properties"].items() if properties.get(name, value) is not None}
    return {**OLD, "properties": {**kept, **{name: value for name, value in properties.items() if value is not None}}}


@pytest.mark.parametrize(
    ("new", "broken"),
    [
        (changed(id=None), ["$.id is gone"]),
        (changed(id={"type": "integer"}), ["$.id was string and is integer"]),
        (changed(id={"type": "string", "maxLength": 64}), ["$.id: maxLength is 64 now"]),
        (changed(id={"type": "string", "maxLength": 256, "minLength": 2}), ["$.id: minLength is 2 now"]),
        (changed(kind={"enum": ["a", "c"]}), ["$.kind may not be 'b' any more"]),
        (changed(slot={"type": "integer", "minimum": 0}), ["$.slot may not be null any more"]),
        (
            changed(slot={"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}),
            ["$.slot may not be integer any more"],
        ),
        ({**OLD, "required": ["id", "slot"]}, ["$.slot is required now"]),
        (
            {
                **OLD,
                "$defs": {"Slot": {"type": "object", "required": ["sku"], "properties": {"sku": {"type": "string"}}}},
            },
            ["$.items[].sku is required now"],
        ),
    ],
)
def test_what_breaks_is_named(new: Schema, broken: list[str]) -> None:
    assert breaking_changes(OLD, new) == broken


@pytest.mark.parametrize(
    "new",
    [
        changed(more={"type": "string", "default": ""}),
        changed(id={"type": "string", "maxLength": 512}),
        changed(kind={"enum": ["a", "b", "c"]}),
        {**OLD, "required": []},
        OLD,
    ],
)
def test_growing_breaks_nothing(new: Schema) -> None:
    assert breaking_changes(OLD, new) == []


@pytest.mark.parametrize(
    ("record", "required"),
    [
        (Click, {"event_id": "e", "user_id": "u", "item_id": "i", "timestamp_ms": 1_700_000_000_000}),
        (Impression, {"event_id": "e", "user_id": "u", "timestamp_ms": 1_700_000_000_000, "items": [{"item_id": "i"}]}),
        (Request, {"event_id": "e", "user_id": "u", "timestamp_ms": 1_700_000_000_000}),
        (
            Recommendation,
            {"request_id": "r", "user_id": "u", "policy": "p", "generated_at_ms": 1_700_000_000_000, "items": []},
        ),
    ],
)
def test_the_least_that_version_1_asked_for_is_enough_and_fields_of_the_future_are_ignored(
    record: type[Click | Impression | Request | Recommendation], required: dict[str, object]
) -> None:
    oldest = msgspec.convert(required, record)

    assert msgspec.convert({**required, "from_the_future": {"a": 1}}, record) == oldest


def test_the_command_refuses_what_breaks(tmp_path: Path) -> None:
    (tmp_path / "clicks.schema.json").write_text(json.dumps({"properties": {"colour": {"type": "string"}}}))

    with pytest.raises(ValueError, match=r"clicks: \$\.colour is gone"):
        refuse_breaking_changes(tmp_path)
    with pytest.raises(ValueError, match="holds no schemas"):
        refuse_breaking_changes(tmp_path / "nowhere")
    refuse_breaking_changes(RELEASED)
