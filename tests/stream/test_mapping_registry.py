"""Events in Avro, Protobuf and JSON Schema, behind a schema registry.

By default against a small server with the documented API; SASREC_TEST_REGISTRY=http://host:port/apis/ccompat/v7 has the
same tests run against a real registry, such as Apicurio's.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stream.dead_letters import Headers, UnreadableError
from stream.events import Click, Impression, SeenItem
from stream.mapping.reading import Mapper, Reading
from stream.mapping.registry import Registry, RegistryError
from stream.mapping.settings import MappingSettings, SourceSettings

fastavro = pytest.importorskip("fastavro", reason="the extra schema-registry is not installed")
protoc = pytest.importorskip("grpc_tools.protoc", reason="the extra schema-registry is not installed")

AT_MS = 1_700_000_000_000
NO_HEADERS: Headers = []
HERE = Path(__file__).parent

Register = Callable[..., int]


class Raw(NamedTuple):
    value: bytes | None
    topic: str = "shop.events"
    partition: int = 0
    offset: int = 1
    key: bytes | None = None
    headers: Headers = NO_HEADERS
    timestamp: int = AT_MS


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if named := os.environ.get("SASREC_TEST_REGISTRY"):
        yield named
        return
    spec = importlib.util.spec_from_file_location("registry_server", HERE / "registry_server.py")
    assert spec is not None
    assert spec.loader is not None
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    with server.serving() as served:
        yield served


@pytest.fixture
def register(url: str) -> Register:
    """Registers a schema under a subject, or one of its own, and gives its id."""

    def post(text: str, *, kind: str, subject: str | None = None, references: tuple[Any, ...] = ()) -> int:
        body = {"schema": text, "schemaType": kind, "references": list(references)}
        request = urllib.request.Request(  # noqa: S310 - the registry of the test
            f"{url}/subjects/{subject or uuid.uuid4().hex}/versions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the same
            return int(json.load(answer)["id"])

    return post


def framed(schema_id: int, payload: bytes) -> bytes:
    return struct.pack(">bI", 0, schema_id) + payload


def read(url: str, value: bytes | None, **source: Any) -> Reading:  # noqa: ANN401 - a source's keys
    table = {"topic": "shop.events", "record": "clicks", "decoder": "confluent", **source}
    mapping = MappingSettings(sources=(SourceSettings.model_validate(table),), registry_url=url)
    return Mapper(mapping).read(Raw(value))


FIELDS = {"event_id": "id", "user_id": "user.id", "item_id": "sku", "timestamp_ms": "at"}
CLICK = Click(event_id="e", user_id="7", item_id="s", timestamp_ms=AT_MS)


def test_avro_with_a_referenced_schema_and_a_logical_date(url: str, register: Register) -> None:
    user = {"type": "record", "name": "shop.User", "fields": [{"name": "id", "type": "long"}]}
    subject = uuid.uuid4().hex
    register(json.dumps(user), kind="AVRO", subject=subject)
    click = {
        "type": "record",
        "name": "shop.Click",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "user", "type": "shop.User"},
            {"name": "sku", "type": ["null", "string"]},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        ],
    }
    reference = {"name": "shop.User", "subject": subject, "version": 1}
    schema_id = register(json.dumps(click), kind="AVRO", references=(reference,))
    named: dict[str, Any] = {}
    fastavro.parse_schema(user, named_schemas=named)
    payload = io.BytesIO()
    event = {"id": "e", "user": {"id": 7}, "sku": "s", "at": AT_MS}
    fastavro.schemaless_writer(payload, fastavro.parse_schema(click, named_schemas=named), event)

    (mapped,) = read(url, framed(schema_id, payload.getvalue()), fields=FIELDS).mapped

    assert mapped.event == CLICK
    cut = read(url, framed(schema_id, payload.getvalue()[:3]), fields=FIELDS)
    assert [one.reason for one in cut.misfits] == ["malformed"]


PROTO = """
syntax = "proto3";
package shop;
import "user.proto";
message Unused { string a = 1; }
message Shown {
  message Slot { string sku = 1; int32 rank = 2; }
  string id = 1;
  User user = 2;
  int64 at = 3;
  repeated Slot slots = 4;
}
"""
USER = 'syntax = "proto3"; package shop; message User { int64 id = 1; }'


def proto_bytes(folder: Path) -> bytes:
    """A `Shown` as any Protobuf library writes it."""
    (folder / "shown.proto").write_text(PROTO)
    (folder / "user.proto").write_text(USER)
    assert protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", "shown.proto", "user.proto"]) == 0
    sys.path.insert(0, str(folder))
    try:
        shown = importlib.import_module("shown_pb2")
        message = shown.Shown(id="e", at=AT_MS, slots=[{"sku": "a", "rank": 0}, {"sku": "b", "rank": 1}])
        message.user.id = 7
        return bytes(message.SerializeToString())
    finally:
        sys.path.remove(str(folder))


def test_protobuf_with_an_import_and_the_second_message_of_its_file(
    url: str, register: Register, tmp_path: Path
) -> None:
    subject = uuid.uuid4().hex
    register(USER, kind="PROTOBUF", subject=subject)
    reference = {"name": "user.proto", "subject": subject, "version": 1}
    schema_id = register(PROTO, kind="PROTOBUF", references=(reference,))
    second_message = bytes([2, 2])  # zigzag: one index, which is 1

    (mapped,) = read(
        url,
        framed(schema_id, second_message + proto_bytes(tmp_path)),
        record="impressions",
        fields={
            "event_id": "id",
            "user_id": "user.id",
            "timestamp_ms": "at",
            "items": "slots[].{item_id: sku, position: rank}",
        },
    ).mapped

    assert mapped.event == Impression(
        event_id="e",
        user_id="7",
        timestamp_ms=AT_MS,
        items=(SeenItem(item_id="a", position=0), SeenItem(item_id="b", position=1)),
    )
    no_such_message = framed(schema_id, bytes([2, 18]))
    assert "has no message [9]" in read(url, no_such_message, fields=FIELDS).misfits[0].message


def test_json_schema(url: str, register: Register) -> None:
    schema_id = register('{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}', kind="JSON")
    payload = json.dumps({"id": "e", "user": {"id": 7}, "sku": "s", "at": AT_MS}).encode()

    assert [one.event for one in read(url, framed(schema_id, payload), fields=FIELDS).mapped] == [CLICK]
    assert [one.reason for one in read(url, framed(schema_id, b"{"), fields=FIELDS).misfits] == ["malformed"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the value is null"),
        (b"{}", "not Confluent's wire format"),
        (b"\0\0\0", "not Confluent's wire format"),
        (framed(999_999, b"x"), "the schema registry has no /schemas/ids/999999"),
    ],
)
def test_what_no_schema_explains_is_a_misfit(url: str, value: bytes | None, reason: str) -> None:
    (misfit,) = read(url, value, fields=FIELDS).misfits

    assert reason in misfit.message


def test_a_registry_that_does_not_answer_is_no_fault_of_the_message() -> None:
    with pytest.raises(RegistryError, match=r"mapping\.registry_url"):
        read("http://127.0.0.1:9", framed(1, b"x"), fields=FIELDS)


def test_a_reference_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    confluent = pytest.importorskip("stream.mapping.confluent")
    schema = importlib.import_module("stream.mapping.registry").Schema("PROTOBUF", PROTO, {"../../x.proto": USER})

    with pytest.raises(UnreadableError, match="refers to"):
        confluent._compiled(schema)


def test_a_decoder_without_a_registry_is_refused() -> None:
    source = SourceSettings.model_validate({"topic": "t", "record": "clicks", "decoder": "confluent", "fields": FIELDS})

    with pytest.raises(ValueError, match=r"needs mapping\.registry_url"):
        Mapper(MappingSettings(sources=(source,)))


def test_user_and_password_go_to_the_registry() -> None:
    headers = Registry("http://r", user="ann:secret")._headers()

    assert headers["Authorization"] == "Basic YW5uOnNlY3JldA=="
