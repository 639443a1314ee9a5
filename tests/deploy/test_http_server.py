"""The HTTP process beside a scoring worker, on a real broker."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from deploy.http.server import run_http
from deploy.http.settings import HttpSettings
from deploy.observe.reading import read_all
from deploy.scoring.worker import run_worker
from deploy.settings import ScoringSettings, Settings, StateSettings
from model.checkpoint import WrittenCheckpoint
from stream.events import Click, Recommendation
from stream.settings import KafkaSettings
from stream.topics import CLICKS, RECOMMENDATIONS, REQUESTS

pytestmark = pytest.mark.broker

ITEMS = tuple(f"item-{number}" for number in range(40))
TOKEN = "a-token-that-nobody-guesses"  # noqa: S105 - of this test
WriteModel = Callable[..., WrittenCheckpoint]


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The address of an HTTP process in a thread, ended cleanly."""
    stop, ready = threading.Event(), queue.Queue[str]()
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(run_http, settings, stop, ready=ready.put)
        try:
            yield ready.get(timeout=60)
        finally:
            stop.set()
            server.result(timeout=60)


@contextlib.contextmanager
def scoring(settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(run_worker, settings, stop)
        try:
            yield
        finally:
            stop.set()
            worker.result(timeout=60)


@pytest.fixture
def settings(kafka: KafkaSettings, tmp_path: Path, write_model: WriteModel) -> Settings:
    checkpoint = write_model(version=1, items=ITEMS).path
    return Settings(
        kafka=kafka,
        state=StateSettings(directory=tmp_path / "state"),
        scoring=ScoringSettings(checkpoint=str(checkpoint)),
        http=HttpSettings(port=0, token=TOKEN, timeout_seconds=60.0),
    )


def test_a_slate_over_http_is_the_record_on_the_topic_and_an_event_stands_where_the_answer_says(
    settings: Settings,
) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        scoring(settings),
        serving(settings) as url,
        httpx2.Client(base_url=url, headers=headers, timeout=90) as client,
    ):
        answer = client.get("/users/a%2Fda/recommendations", params={"k": 3, "exclude": list(ITEMS[:30])})
        event = {"type": "click", "event_id": "e", "user_id": "ada", "item_id": "i", "timestamp_ms": 1_700_000_000_000}
        taken = client.post("/events", json={"events": [event]})
        refused = httpx2.get(f"{url}/users/ada/recommendations")

    assert answer.status_code == 200
    slate = msgspec.json.decode(answer.content, type=Recommendation)
    assert (slate.user_id, len(slate.items), slate.missing) == ("a/da", 3, 0)
    assert {item.item_id for item in slate.items} <= set(ITEMS[30:])
    assert answer.content in {record.value for record in read_all(settings.kafka, RECOMMENDATIONS)}
    assert taken.status_code == 202
    (place,) = taken.json()["places"]
    (record,) = read_all(settings.kafka, CLICKS)
    assert place == {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    assert msgspec.json.decode(record.value, type=Click).event_id == "e"
    assert (record.key, dict(record.headers)["ce_type"]) == (b"ada", b"sasrec-stream.click.v1")
    assert refused.status_code == 401


def test_without_a_scoring_worker_the_client_is_told_and_the_request_stands_there_to_be_answered(
    settings: Settings,
) -> None:
    hasty = settings.model_copy(update={"http": HttpSettings(port=0, timeout_seconds=0.3)})
    with serving(hasty) as url:
        answer = httpx2.get(f"{url}/users/ada/recommendations", timeout=90)

    assert answer.status_code in {503, 504}
    (request,) = read_all(settings.kafka, REQUESTS)
    with scoring(settings):
        answered: set[Any] = set()
        while request.key not in answered:
            answered = {record.key for record in read_all(settings.kafka, RECOMMENDATIONS)}


def test_a_port_that_is_taken_is_named(settings: Settings) -> None:
    with serving(settings) as url:
        taken = settings.model_copy(update={"http": HttpSettings(port=int(url.rpartition(":")[2]))})

        with pytest.raises(ValueError, match=r"cannot listen on 127\.0\.0\.1:\d+ .* set http\.port"):
            run_http(taken, threading.Event())
