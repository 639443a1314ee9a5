"""The AsyncAPI document says what the code does, and is one by the official schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stream.asyncapi import FILE, asyncapi_document, asyncapi_text
from stream.cloud_events import KINDS, event_headers
from stream.events import Click
from stream.schemas import PUBLIC_RECORDS
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, SEQUENCES, TOPICS

WRITTEN = Path(__file__).parents[2] / "docs" / "schemas" / FILE
OFFICIAL = Path(__file__).parent / "asyncapi" / "3.0.0.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_document(KafkaSettings())


def test_the_written_document_is_the_one_of_the_code() -> None:
    assert WRITTEN.read_text() == asyncapi_text(KafkaSettings()), "run `sasrec-stream schemas docs/schemas`"


def test_the_document_is_valid_by_the_official_schema(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft7Validator(json.loads(OFFICIAL.read_text()))

    assert [error.json_path for error in validator.iter_errors(document)] == []


def test_a_document_without_its_channels_addresses_is_not_valid(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft7Validator(json.loads(OFFICIAL.read_text()))
    channels = {name: {**channel, "address": 7} for name, channel in document["channels"].items()}

    assert not validator.is_valid({**document, "channels": channels})


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [one for value in node.values() for one in references(value)]
        return [one for value in node for one in references(value)] if isinstance(node, list) else []

    for reference in references(document):
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_every_topic_that_applications_meet_is_a_channel_with_its_prefix() -> None:
    document = asyncapi_document(KafkaSettings(topic_prefix="shop.", partitions=12))

    assert set(document["channels"]) == set(TOPICS) - {SEQUENCES, EXAMPLES}
    assert document["channels"]["clicks"]["address"] == "shop.clicks"
    assert document["channels"]["clicks"]["bindings"]["kafka"]["partitions"] == 12


def test_the_headers_we_write_are_those_of_the_document(document: dict[str, Any]) -> None:
    click = Click(event_id="e", user_id="u", item_id="i", timestamp_ms=1_700_000_000_000)

    headers = dict(event_headers(click, event_id="e", source="shop", at_ms=1_700_000_000_000))

    described = document["components"]["messages"]["click"]["headers"]
    assert set(headers) == set(described["properties"])
    jsonschema.validate({name: value.decode() for name, value in headers.items()}, described)
    assert set(KINDS) == set(PUBLIC_RECORDS.values())
