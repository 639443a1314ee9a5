"""Confluent's wire format: a zero byte, the schema's id in four bytes, then Avro, Protobuf or JSON.

https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import grpc_tools
import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from grpc_tools import protoc

from stream.dead_letters import RawRecord, UnreadableError
from stream.mapping.registry import Registry, Schema

_HEAD = struct.Struct(">bI")
MAGIC = 0

Read = Callable[[bytes], Any]
"""What stands behind the head -> plain dicts and lists."""


class Confluent:
    """Keeps a reader for every schema that it has met."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._readers: dict[int, Read] = {}

    def decode(self, record: RawRecord) -> Any:  # noqa: ANN401 - whatever stands in a message
        """The message by the schema that it names.

        Raises:
            UnreadableError: null, without the five bytes, of an unknown schema or not what the schema says.
            RegistryError: the registry does not answer.
        """
        if record.value is None:
            raise UnreadableError("null", "the value is null; only items have tombstones")
        if len(record.value) < _HEAD.size or record.value[0] != MAGIC:
            raise UnreadableError(
                "malformed", "not Confluent's wire format: it begins with a zero byte and a schema id"
            )
        _, schema_id = _HEAD.unpack_from(record.value)
        if schema_id not in self._readers:
            self._readers[schema_id] = _reader_of(self._registry.schema(schema_id))
        return self._readers[schema_id](record.value[_HEAD.size :])


def _reader_of(schema: Schema) -> Read:
    readers: dict[str, Callable[[Schema], Read]] = {"AVRO": _avro, "PROTOBUF": _protobuf, "JSON": lambda _: _read_json}
    if schema.kind not in readers:
        raise UnreadableError("invalid", f"a schema of type {schema.kind}; only {', '.join(readers)} are read")
    return readers[schema.kind](schema)


def _read_json(payload: bytes) -> Any:  # noqa: ANN401 - see above
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError("malformed", f"not JSON: {error}") from error


def _avro(schema: Schema) -> Read:
    named: dict[str, Any] = {}
    try:
        for text in schema.references.values():
            fastavro.parse_schema(json.loads(text), named_schemas=named)
        parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
    except (fastavro.schema.SchemaParseException, ValueError) as error:
        raise UnreadableError("invalid", f"its Avro schema cannot be read: {error}") from error

    def read(payload: bytes) -> Any:  # noqa: ANN401 - see above
        rest = io.BytesIO(payload)
        try:
            return fastavro.schemaless_reader(rest, parsed, None)
        except Exception as error:
            raise UnreadableError("malformed", f"not what its Avro schema says: {error!r}") from error

    return read


def _protobuf(schema: Schema) -> Read:
    descriptors = _compiled(schema)

    def read(payload: bytes) -> Any:  # noqa: ANN401 - see above
        rest = io.BytesIO(payload)
        message = message_factory.GetMessageClass(_chosen(descriptors, _indexes(rest)))()
        try:
            message.ParseFromString(rest.read())
        except DecodeError as error:
            raise UnreadableError("malformed", f"not what its Protobuf schema says: {error}") from error
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    return read


def _compiled(schema: Schema) -> list[Descriptor]:
    """The messages of a .proto file, in the order in which it has them."""
    main = "schema_of_the_message.proto"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**schema.references, main: schema.text}.items():
            file = (Path(folder) / name).resolve()
            if not file.is_relative_to(Path(folder).resolve()):
                raise UnreadableError("invalid", f"its schema refers to {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        out = Path(folder) / "descriptors"
        arguments = ["protoc", f"-I{folder}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, main]) or not out.exists():
            raise UnreadableError("invalid", "its Protobuf schema does not compile")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for one in files:
        pool.Add(one)
    found = pool.FindFileByName(main)
    return [found.message_types_by_name[message.name] for message in files[-1].message_type]


def _chosen(descriptors: list[Descriptor], indexes: list[int]) -> Descriptor:
    """Which message of the file: an index on every level of nesting."""
    level = descriptors
    chosen = None
    for index in indexes:
        if not 0 <= index < len(level):
            raise UnreadableError("malformed", f"its schema has no message {indexes}")
        chosen = level[index]
        level = list(chosen.nested_types)
    assert chosen is not None, "there is at least one index"
    return chosen


def _indexes(rest: io.BytesIO) -> list[int]:
    """Zigzag varints: how many, then each; a single 0 stands for [0]."""
    count = _varint(rest)
    if not 0 <= count <= 100:
        raise UnreadableError("malformed", "not Confluent's wire format: no message indexes behind the schema id")
    return [_varint(rest) for _ in range(count)] or [0]


def _varint(rest: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = rest.read(1)
        if not byte or shift > 63:
            raise UnreadableError("malformed", "not Confluent's wire format: no message indexes behind the schema id")
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
