"""`sasrec-stream topics sample`: how the last messages of a topic are read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from stream.clients import admin, producer
from stream.dead_letters import Headers
from stream.mapping.reading import Mapper
from stream.mapping.sample import own_sample, samples
from stream.mapping.settings import MappingSettings
from stream.settings import KafkaSettings

AT_MS = 1_700_000_000_000
NO_HEADERS: Headers = []
SOURCE = {
    "topic": "shop.events",
    "record": "clicks",
    "only_if": "type == 'click'",
    "each": "events",
    "timestamp": "s",
    "fields": {"user_id": "who", "item_id": "product.sku", "timestamp_ms": "at"},
    "constants": {"position": 3},
}


class Raw(NamedTuple):
    value: bytes | None
    topic: str = "shop.events"
    partition: int = 0
    offset: int = 1
    key: bytes | None = b"k"
    headers: Headers = NO_HEADERS
    timestamp: int = AT_MS


def test_every_field_is_shown_with_where_it_stood_what_was_found_and_what_it_becomes() -> None:
    mapper = Mapper(MappingSettings.model_validate({"sources": [SOURCE]}))
    events = [
        {"type": "click", "who": 7, "product": {"sku": "s"}, "at": AT_MS // 1_000},
        {"type": "login"},
        {"type": "click", "who": 7, "at": AT_MS},
    ]

    good, other, bad = samples(mapper, Raw(msgspec.json.encode({"events": events})))

    assert [sample.fits for sample in (good, other, bad)] == [True, False, False]
    assert {tuple(line) for line in good.lines} == {
        ("position", "constant", 3, 3),
        ("user_id", "who", 7, "7"),
        ("item_id", "product.sku", "s", "s"),
        ("timestamp_ms", "at", AT_MS // 1_000, AT_MS),
        ("event_id", "source position", "shop.events-0-1-0", "shop.events-0-1-0"),
    }
    assert "only_if" in other.verdict
    assert "missing required field `item_id` (from `product.sku`)" in bad.verdict
    assert ("item_id", "product.sku", None, "nothing there") in bad.lines


def test_a_message_that_cannot_be_taken_apart_says_why() -> None:
    mapper = Mapper(MappingSettings.model_validate({"sources": [SOURCE]}))

    (broken,) = samples(mapper, Raw(b"{"))

    assert broken.ordinal is None
    assert "not JSON" in broken.verdict


@pytest.mark.parametrize(
    ("value", "key", "verdict"),
    [
        (b'{"event_id":"e","user_id":"u","item_id":"i","timestamp_ms":1700000000000}', b"u", "fits"),
        (b'{"event_id":"e","user_id":"u","item_id":"i","timestamp_ms":1700000000000}', b"v", "the key is not the id"),
        (b'{"event_id":"e","user_id":"u","item_id":"i","timestamp_ms":1700000000}', b"u", "looks like seconds"),
        (None, b"u", "the value is null"),
    ],
)
def test_our_own_topics_need_no_mapping(value: bytes | None, key: bytes, verdict: str) -> None:
    assert verdict in own_sample("clicks", Raw(value, key=key)).verdict


@pytest.mark.broker
def test_the_command_shows_the_last_messages_of_all_partitions(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASREC__KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    shop = f"{kafka.topic_prefix}shop"
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'[[mapping.sources]]\ntopic = "{shop}"\nrecord = "clicks"\n'
        'fields = { user_id = "who", item_id = "sku", timestamp_ms = "at" }\n'
    )
    with admin(kafka) as client:
        client.create_topics({shop: {"num_partitions": 3, "replication_factor": 1}})
    with producer(kafka) as client:
        for number in range(9):
            message = {"who": "[red]u", "sku": f"s{number}", "at": AT_MS}
            client.send(shop, msgspec.json.encode(message), partition=number % 3).get(timeout=10)
        client.send(shop, b"\x1b[2J", partition=0).get(timeout=10)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["--settings", str(settings), "topics", "sample", *arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    output = said(shop, "-n", "3")

    assert "2 fits, 1 does not fit" in output
    assert "'s7'" in output
    assert "'s6'" not in output
    assert "[red]u" in output
    assert "\x1b[2J" not in output
    missing = CliRunner().invoke(app, ["--settings", str(settings), "topics", "sample", "nobody.maps.this"])
    assert isinstance(missing.exception, ValueError)
    assert "no [[mapping.sources]] reads nobody.maps.this" in str(missing.exception)
