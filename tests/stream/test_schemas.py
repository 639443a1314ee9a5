"""The JSON Schemas beside the documentation say what the records are."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest

from stream import topics
from stream.events import Cause, Click, Recommendation, RecommendedItem, Record
from stream.schemas import PUBLIC_RECORDS, schema_of, schema_text

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"

CLICK = Click(event_id="e1", user_id="u1", item_id="i1", timestamp_ms=1_700_000_000_000, request_id="r1", position=2)
SLATE = Recommendation(
    request_id="r1",
    user_id="u1",
    policy="sasrec",
    generated_at_ms=1_700_000_000_000,
    items=(RecommendedItem(item_id="i1", position=0, score=1.5, propensity=0.25, propensity_kind="exact"),),
    cause=Cause(topic="clicks", partition=0, offset=7, arrived_at_ms=1_700_000_000_000),
)


@pytest.mark.parametrize("topic", PUBLIC_RECORDS)
def test_the_written_schema_is_the_one_of_the_code(topic: str) -> None:
    written = (SCHEMAS / f"{topic}.schema.json").read_text()

    assert written == schema_text(PUBLIC_RECORDS[topic]), "run `sasrec-stream schemas docs/schemas`"


@pytest.mark.parametrize("record", PUBLIC_RECORDS.values())
def test_every_schema_is_a_valid_schema(record: type[Record]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(record))


@pytest.mark.parametrize("record", [CLICK, SLATE])
def test_what_we_write_fits_its_schema(record: Record) -> None:
    written = msgspec.json.decode(msgspec.json.encode(record))

    jsonschema.Draft202012Validator(schema_of(type(record))).validate(written)


@pytest.mark.parametrize(
    "wrong",
    [{"timestamp_ms": 1_700_000_000}, {"user_id": ""}, {"item_id": "x" * 257}, {"position": -1}, {"event_id": None}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_a_record_refuses_its_schema_refuses(wrong: dict[str, object]) -> None:
    message = msgspec.to_builtins(CLICK) | wrong

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(message, Click)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema_of(Click)).validate(message)


def test_every_public_topic_has_a_schema() -> None:
    internal = {topics.SEQUENCES, topics.EXAMPLES}
    public = {name for name in topics.TOPICS if not name.endswith(topics.DEAD_LETTER_SUFFIX)} - internal

    assert set(PUBLIC_RECORDS) == public
