"""Slates for those who wait for them: follows `recommendations` from now on, and hands each to whoever asked for it."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import msgspec
from kafka import TopicPartition

from stream.clients import consumer
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS

_POLL_MS = 100


class _Slate(msgspec.Struct, gc=False):
    request_id: str


class Mailbox:
    """Who waits, by request_id; whatever nobody waits for is passed over."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self.ready = threading.Event()
        """Set when every slate made from now on will be seen."""

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, request_id: str) -> asyncio.Future[bytes]:
        """The slate of a request, once it comes; call it before the request is sent, and `forget` it in the end."""
        slate: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = slate
        return slate

    def forget(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(request_id, None)

    def run(self, stop: threading.Event) -> None:
        """Follows the topic until `stop`; for a thread of its own.

        Raises:
            KafkaError: the topic cannot be read.
        """
        topic = self._kafka.topic(RECOMMENDATIONS)
        with consumer(self._kafka) as reader:
            partitions = [TopicPartition(topic, number) for number in reader.partitions_for_topic(topic) or ()]
            reader.assign(partitions)
            for partition, end in reader.end_offsets(partitions).items():
                reader.seek(partition, end)
            self.ready.set()
            while not stop.is_set():
                for records in reader.poll(timeout_ms=_POLL_MS).values():
                    self._hand_out(records)

    def _hand_out(self, records: list[Any]) -> None:
        for record in records:
            if not self._waiting:
                return
            slate = self._waiting.get(_request_id(record.value))
            if slate is not None:
                slate.get_loop().call_soon_threadsafe(_settle, slate, record.value)


def _settle(slate: asyncio.Future[bytes], value: bytes) -> None:
    """The first slate of a request is its answer; who gave up waiting gets none."""
    if not slate.done():
        slate.set_result(value)


def _request_id(value: bytes | None) -> str:
    """Empty, which nobody waits for, where it is no slate: to refuse it is up to the stream worker."""
    try:
        return _decoder().decode(value or b"").request_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


@functools.cache
def _decoder() -> msgspec.json.Decoder[_Slate]:
    return msgspec.json.Decoder(_Slate)
