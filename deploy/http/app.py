"""The routes: what comes in becomes a record on a topic, what a recommender answers goes out as it stands there."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.http import metrics
from deploy.http.bodies import Asked, RefusedError, read_events, read_query, read_wanted
from deploy.http.openapi import openapi_document
from deploy.http.outbox import NotTakenError, Place, TooLargeError
from deploy.http.settings import HttpSettings
from stream import events

HEALTH = "/health"
JSON = "application/json"
CLIENT_CLOSED = 499
RETRY_SECONDS = "1"
Endpoint = Callable[[Request], Awaitable[Response]]


class IdConvertor(PathConvertor):
    """A user's id in a path, which may hold line breaks, at which a `path` stops. It is read from the raw path."""

    regex = "(?s:.*)"


register_url_convertor("id", IdConvertor())


class Sender(Protocol):
    """Takes records to Kafka."""

    async def send(
        self,
        records: Sequence[events.Click | events.Impression | events.Request],
        *,
        at_ms: int,
        timeout_seconds: float,
    ) -> list[Place]:
        """Where they stand, once they are acknowledged."""


class Slates(Protocol):
    """Brings slates from Kafka."""

    def __len__(self) -> int:
        """How many are waited for."""

    def expect(self, request_id: str) -> asyncio.Future[bytes]:
        """The slate of a request, once it comes."""

    def forget(self, request_id: str) -> None:
        """Nobody waits for it any more."""


class Api:
    """What the routes do."""

    def __init__(
        self, settings: HttpSettings, sender: Sender, slates: Slates, *, max_future_ms: int, max_fresh_wait_ms: int
    ) -> None:
        self._settings = settings
        self._sender = sender
        self._slates = slates
        self._max_future_ms = max_future_ms
        self._max_fresh_wait_ms = max_fresh_wait_ms
        self._document = msgspec.json.encode(openapi_document(needs_token=settings.token is not None))

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route(
                    "/users/{user_id:id}/recommendations",
                    self._guarded("recommend", self._recommend),
                    methods=["GET", "POST"],
                ),
                Route("/events", self._guarded("events", self._take_events), methods=["POST"]),
                Route("/openapi.json", self._guarded("openapi", self._openapi)),
                Route(HEALTH, _health),
            ],
            exception_handlers={HTTPException: _refuse_route},
        )

    def _guarded(self, route: str, endpoint: Endpoint) -> Endpoint:
        """Asks for the token, counts, and turns what is wrong into an answer that says what to do."""

        async def guarded(request: Request) -> Response:
            with metrics.SECONDS.labels(route=route).time():
                answer = await self._answered(request, endpoint)
            metrics.ANSWERS.labels(route=route, status=str(answer.status_code)).inc()
            return answer

        return guarded

    async def _answered(self, request: Request, endpoint: Endpoint) -> Response:
        if not self._may_enter(request):
            return _error(401, "send the header Authorization: Bearer <http.token>", {"www-authenticate": "Bearer"})
        try:
            return await endpoint(request)
        except RefusedError as error:
            return _error(error.status, str(error))
        except TooLargeError as error:
            return _error(413, str(error))
        except NotTakenError as error:
            return _error(503, f"{error}; send it again with the same event_id", {"retry-after": RETRY_SECONDS})
        except ClientDisconnect:
            return _error(CLIENT_CLOSED, "the client went away")

    def _may_enter(self, request: Request) -> bool:
        if self._settings.token is None:
            return True
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.encode(), self._settings.token.encode())

    async def _recommend(self, request: Request) -> Response:
        """A request record like any other, and the slate that answers it."""
        if len(self._slates) >= self._settings.max_waiting:
            return _error(503, "too many wait for slates; come again", {"retry-after": RETRY_SECONDS})
        now_ms = _now_ms()
        wanted = await self._wanted(request, Asked(request.scope["raw_path"], uuid.uuid4().hex, now_ms))
        seconds = self._settings.timeout_seconds + self._wait_ms(wanted) / 1_000
        slate = self._slates.expect(wanted.event_id)
        metrics.WAITING.set(len(self._slates))
        try:
            async with asyncio.timeout(seconds):
                await self._sender.send([wanted], at_ms=now_ms, timeout_seconds=seconds)
                return Response(await slate, media_type=JSON)
        except TimeoutError:
            return _error(
                504,
                f"no recommender answered within {seconds:g} s; see that a scoring worker runs "
                "(`sasrec-stream run scoring`) and that its lag is small, then ask again",
            )
        finally:
            self._slates.forget(wanted.event_id)

    async def _wanted(self, request: Request, asked: Asked) -> events.Request:
        """From the query, or from the body where lists are too long for a URL."""
        if request.method == "POST":
            return read_wanted(asked, await self._json(request))
        return read_query(asked, request.query_params.multi_items())

    def _wait_ms(self, wanted: events.Request) -> int:
        if not wanted.wants_fresh:
            return 0
        return min(self._max_fresh_wait_ms, self._max_fresh_wait_ms if wanted.wait_ms is None else wanted.wait_ms)

    async def _take_events(self, request: Request) -> Response:
        """Answered when Kafka has them: what was answered with 202 is not lost."""
        now_ms = _now_ms()
        records = read_events(await self._json(request), latest_ms=now_ms + self._max_future_ms)
        places = await self._sender.send(records, at_ms=now_ms, timeout_seconds=self._settings.timeout_seconds)
        body = msgspec.json.encode({"places": [place._asdict() for place in places]})
        return Response(body, status_code=202, media_type=JSON)

    async def _json(self, request: Request) -> bytes:
        """The body, read piece by piece, so that nobody fills the memory."""
        media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if media_type != JSON:
            raise RefusedError(415, f"{media_type} is not taken; send {JSON}")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._settings.max_body_bytes:
                raise RefusedError(413, f"the body is larger than {self._settings.max_body_bytes} bytes; send less")
        return bytes(body)

    async def _openapi(self, _request: Request) -> Response:
        return Response(self._document, media_type=JSON)


async def _health(_request: Request) -> Response:
    return Response(b'{"status":"ok"}', media_type=JSON)


async def _refuse_route(_request: Request, error: Exception) -> Response:
    """A path or method that does not exist."""
    assert isinstance(error, HTTPException)
    known = "there are GET and POST /users/{id}/recommendations, POST /events, GET /openapi.json and GET /health"
    return _error(error.status_code, f"{error.detail.lower()}; {known}", dict(error.headers or {}))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode({"error": message}), status_code=status, media_type=JSON, headers=headers)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
