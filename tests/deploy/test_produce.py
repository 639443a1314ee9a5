from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import app
from deploy.observe.reading import read_all
from deploy.observe.titles import read_titles
from stream.events import Click, Impression, Record, Request, SeenItem
from stream.settings import KafkaSettings


@pytest.fixture
def installation(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("SASREC__KAFKA__PARTITIONS", str(kafka.partitions))


def produce(kafka: KafkaSettings, *words: str) -> Result:
    command = ["--bootstrap-servers", kafka.bootstrap_servers, "produce", *words]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def only(kafka: KafkaSettings, topic: str, kind: type[Record]) -> Any:  # noqa: ANN401 - a record of that kind
    (record,) = read_all(kafka, topic)
    return msgspec.json.decode(record.value, type=kind)


@pytest.mark.broker
@pytest.mark.usefixtures("installation")
def test_a_click_is_dated_now_and_it_is_said_where_it_went(kafka: KafkaSettings) -> None:
    before_ms = time.time_ns() // 1_000_000

    result = produce(kafka, "click", "anna", "70", "--position", "2")

    click = only(kafka, "clicks", Click)
    assert (click.user_id, click.item_id, click.position, click.request_id) == ("anna", "70", 2, None)
    assert before_ms <= click.timestamp_ms <= time.time_ns() // 1_000_000
    assert result.stdout.startswith(f"{kafka.topic('clicks')}: partition ")
    assert result.stdout.endswith("offset 0\n")


@pytest.mark.broker
@pytest.mark.usefixtures("installation")
def test_an_impression_numbers_its_items_from_the_first_slot(kafka: KafkaSettings) -> None:
    produce(kafka, "impression", "anna", "70", "71", "--request-id", "r1", "--event-id", "e1")

    impression = only(kafka, "impressions", Impression)
    assert impression.items == (SeenItem(item_id="70", position=0), SeenItem(item_id="71", position=1))
    assert (impression.request_id, impression.event_id) == ("r1", "e1")


@pytest.mark.broker
@pytest.mark.usefixtures("installation")
def test_a_request_says_how_many_and_which(kafka: KafkaSettings) -> None:
    wishes = ("-k", "3", "--candidate", "1", "--candidate", "2", "--exclude", "9", "--fresh-through-offset", "7")
    produce(kafka, "request", "anna", *wishes)

    request = only(kafka, "requests", Request)
    assert (request.k, request.candidates, request.exclude) == (3, ("1", "2"), ("9",))
    assert request.fresh_through_offset == 7


@pytest.mark.broker
@pytest.mark.usefixtures("installation")
def test_an_item_gets_a_title_and_loses_it_when_withdrawn(kafka: KafkaSettings) -> None:
    produce(kafka, "item", "70", "--title", "Seventy")
    titled = read_titles(kafka)
    produce(kafka, "item", "70", "--withdraw")

    assert titled == {"70": "Seventy"}
    assert read_titles(kafka) == {}


@pytest.mark.broker
@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("click", "anna", "70", "--position", "1000"), "position"),
        (("click", "", "70"), "user_id has 0 bytes"),
        (("click", "anna", "70", "--timestamp-ms", "1700000000"), "looks like seconds; send milliseconds"),
        (("request", "anna", "-k", "0"), "k"),
        (("item", "x" * 257), "item_id has 257 bytes"),
    ],
)
def test_what_no_reader_would_take_is_refused_before_it_is_sent(
    kafka: KafkaSettings, words: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        produce(kafka, *words)
