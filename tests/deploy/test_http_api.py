"""The HTTP routes against their own schema and against bad input, without Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import ValidationError
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from deploy.http.app import Api
from deploy.http.outbox import NotTakenError, Place
from deploy.http.settings import HttpSettings
from stream.events import Click, Impression, Recommendation, RecommendedItem, Request

NOW_MS = 1_700_000_000_000
TOKEN = "a-token-that-nobody-guesses"  # noqa: S105 - of this test
Answering = Callable[[Request], bytes | None]


class Kafka:
    """Takes records, and lets a recommender of the test answer them at once."""

    def __init__(self, answering: Answering) -> None:
        self.taken: list[Click | Impression | Request] = []
        self.is_down = False
        self._answering = answering
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, request_id: str) -> asyncio.Future[bytes]:
        self._waiting[request_id] = asyncio.get_running_loop().create_future()
        return self._waiting[request_id]

    def forget(self, request_id: str) -> None:
        self._waiting.pop(request_id)

    async def send(
        self, records: Sequence[Click | Impression | Request], *, at_ms: int, timeout_seconds: float
    ) -> list[Place]:
        if self.is_down:
            raise NotTakenError("Kafka did not take it: no answer in time")
        self.taken += records
        for record in records:
            if isinstance(record, Request) and (slate := self._answering(record)):
                self._waiting[record.event_id].set_result(slate)
        return [Place("recs.clicks", 0, offset) for offset, _ in enumerate(records)]


def slate_for(request: Request) -> bytes:
    item = RecommendedItem(item_id="item-1", position=0, propensity=0.5, propensity_kind="exact")
    return msgspec.json.encode(
        Recommendation(
            request_id=request.event_id, user_id=request.user_id, policy="p", generated_at_ms=NOW_MS, items=(item,)
        )
    )


def nobody(_request: Request) -> None:
    return None


def api(kafka: Kafka, **http: Any) -> Api:  # noqa: ANN401 - fields of HttpSettings
    return Api(
        HttpSettings(**{"timeout_seconds": 0.05} | http), kafka, kafka, max_future_ms=300_000, max_fresh_wait_ms=0
    )


@pytest.fixture
def kafka() -> Kafka:
    return Kafka(slate_for)


@pytest.fixture
def client(kafka: Kafka) -> TestClient:
    return TestClient(api(kafka).app())


schema = schemathesis.openapi.from_asgi("/openapi.json", api(Kafka(slate_for), max_body_bytes=64_000_000).app())


@schema.parametrize()
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_client_made_from_the_schema_finds_nothing_that_contradicts_it(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            response_headers_conformance,
            negative_data_rejection,
        ]
    )


def test_a_slate_is_asked_for_as_on_kafka_and_comes_back_as_it_stands_there(client: TestClient, kafka: Kafka) -> None:
    answer = client.get("/users/ada/recommendations?k=3&candidate=a&candidate=b&exclude=c&fresh_through_offset=7")

    (request,) = kafka.taken
    assert isinstance(request, Request)
    assert (request.user_id, request.k, request.candidates, request.exclude) == ("ada", 3, ("a", "b"), ("c",))
    assert request.fresh_through_offset == 7
    assert answer.status_code == 200
    assert answer.content == slate_for(request)
    assert len(kafka) == 0


@pytest.mark.parametrize(
    ("path", "user_id"),
    [("a%2Fb", "a/b"), ("a/b", "a/b"), ("%C3%BC", "ü"), ("users%2F", "users/"), ("%3F", "?"), ("%0Aa%0D", "\na\r")],
)
def test_any_user_id_fits_into_the_path(client: TestClient, kafka: Kafka, path: str, user_id: str) -> None:
    assert client.get(f"/users/{path}/recommendations").status_code == 200

    assert kafka.taken[0].user_id == user_id


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("ada/recommendations?k=0", 422, ">= 1"),
        ("ada/recommendations?k=-1", 422, ">= 1"),
        ("ada/recommendations?k=1000000", 422, "<= 1000"),
        ("ada/recommendations?k=ten", 400, "no whole number"),
        ("ada/recommendations?k=1&k=2", 400, "given twice"),
        ("ada/recommendations?exlude=a", 400, "no parameter 'exlude'"),
        ("ada/recommendations?fresh_through_ms=1700000000", 422, "looks like seconds"),
        ("ada/recommendations?exclude=", 422, "item id has 0 bytes"),
        ("%FF/recommendations", 400, "not UTF-8"),
        ("a%00b/recommendations", 422, "NUL"),
        ("u" * 257 + "/recommendations", 422, "257 bytes"),
        ("/recommendations", 422, "0 bytes"),
    ],
)
def test_a_bad_request_is_refused_with_what_to_do(
    client: TestClient, kafka: Kafka, path: str, status: int, reason: str
) -> None:
    answer = client.get(f"/users/{path}")

    assert (answer.status_code, reason in answer.json()["error"]) == (status, True), answer.text
    assert not kafka.taken


def test_lists_too_long_for_a_url_go_into_a_body(client: TestClient, kafka: Kafka) -> None:
    candidates = [f"nobody-{number}" for number in range(10_000)]

    answer = client.post("/users/ada/recommendations", json={"candidates": candidates, "k": 3})

    assert answer.status_code == 200
    (request,) = kafka.taken
    assert isinstance(request, Request)
    assert (request.user_id, request.k, len(request.candidates or ())) == ("ada", 3, 10_000)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "send an object"),
        ({"user_id": "eve"}, "send an object with any of"),
        ({"k": 0}, ">= 1"),
        ({"k": "3"}, "int"),
        ({"candidates": ["a"] * 10_001}, "10000"),
        ({"exclude": [""]}, "item id has 0 bytes"),
    ],
)
def test_a_bad_wish_is_refused_with_what_to_do(client: TestClient, kafka: Kafka, body: Any, reason: str) -> None:  # noqa: ANN401
    answer = client.post("/users/ada/recommendations", json=body)

    assert (answer.status_code, reason in answer.json()["error"]) == (422, True), answer.text
    assert not kafka.taken


def event(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a client sends
    return {"type": "click", "event_id": "e", "user_id": "ada", "item_id": "i", "timestamp_ms": NOW_MS} | changes


def test_events_are_answered_with_where_they_stand(client: TestClient, kafka: Kafka) -> None:
    view = {
        "type": "impression",
        "event_id": "v",
        "user_id": "ada",
        "timestamp_ms": NOW_MS,
        "items": [{"item_id": "i"}],
    }

    answer = client.post("/events", json={"events": [event(request_id="r"), view]})

    assert answer.status_code == 202
    assert [place["offset"] for place in answer.json()["places"]] == [0, 1]
    click, impression = kafka.taken
    assert isinstance(click, Click)
    assert isinstance(impression, Impression)
    assert click.request_id == "r"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"{}", 422, "1 to 1000 events"),
        (b'{"events": []}', 422, "1 to 1000 events"),
        (b'{"events": [1]}', 422, "events[0]"),
        (msgspec.json.encode({"events": [event()] * 1_001}), 422, "1 to 1000 events"),
        (msgspec.json.encode({"events": [event(), event(type="buy")]}), 422, 'events[1]: "type" must be'),
        (msgspec.json.encode({"events": [event(item_id="")]}), 422, "item_id has 0 bytes"),
        (msgspec.json.encode({"events": [event(timestamp_ms=1_700_000_000)]}), 422, "looks like seconds"),
        (msgspec.json.encode({"events": [event(timestamp_ms=4_000_000_000_000)]}), 422, "in the future"),
        (b'{"events": [' + b" " * 1_100_000 + b"]}", 413, "larger than 1000000 bytes"),
    ],
)
def test_bad_events_are_refused_with_what_to_do_and_none_is_sent(
    client: TestClient, kafka: Kafka, body: bytes, status: int, reason: str
) -> None:
    answer = client.post("/events", content=body, headers={"content-type": "application/json"})

    assert (answer.status_code, reason in answer.json()["error"]) == (status, True), answer.text
    assert not kafka.taken


def test_a_body_that_is_not_json_by_its_own_word_is_refused(client: TestClient) -> None:
    assert client.post("/events", content=b"{}", headers={"content-type": "text/csv"}).status_code == 415


def test_when_no_recommender_answers_in_time_the_client_is_told_and_forgotten() -> None:
    kafka = Kafka(nobody)

    answer = TestClient(api(kafka).app()).get("/users/ada/recommendations")

    assert answer.status_code == 504
    assert "no recommender answered within 0.05 s" in answer.json()["error"]
    assert len(kafka) == 0


def test_what_kafka_does_not_take_is_not_said_to_be_taken(client: TestClient, kafka: Kafka) -> None:
    kafka.is_down = True

    for answer in (client.post("/events", json={"events": [event()]}), client.get("/users/ada/recommendations")):
        assert answer.status_code == 503
        assert "send it again with the same event_id" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"


def test_a_path_that_does_not_exist_names_those_that_do(client: TestClient) -> None:
    for answer in (client.get("/nothing"), client.get("/events")):
        assert answer.status_code in {404, 405}
        assert "POST /events" in answer.json()["error"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \u00e9"])
def test_without_the_token_nobody_gets_anything(kafka: Kafka, header: str | None) -> None:
    closed = TestClient(api(kafka, token=TOKEN).app())
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]

    for path in ("/users/ada/recommendations", "/openapi.json"):
        answer = closed.get(path, headers=headers)
        assert answer.status_code == 401
        assert "Authorization: Bearer" in answer.json()["error"]
    assert closed.post("/events", json={"events": [event()]}, headers=headers).status_code == 401
    assert closed.get("/health", headers=headers).status_code == 200
    assert not kafka.taken


def test_with_the_token_everything_is_as_without(kafka: Kafka) -> None:
    closed = TestClient(api(kafka, token=TOKEN).app(), headers={"authorization": f"Bearer {TOKEN}"})

    assert closed.get("/users/ada/recommendations").status_code == 200
    assert closed.get("/openapi.json").json()["security"] == [{"token": []}]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104 - refused here
def test_listening_to_others_takes_a_token(host: str) -> None:
    with pytest.raises(ValidationError, match=r"set http\.token"):
        HttpSettings(host=host)

    assert HttpSettings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_listening_to_this_machine_takes_none(host: str) -> None:
    assert HttpSettings(host=host).token is None
