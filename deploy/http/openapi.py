"""The OpenAPI document, generated from the records that travel on Kafka."""

from __future__ import annotations

from typing import Any

from deploy.http.bodies import MAX_EVENTS, WANTED
from stream.events import (
    EARLIEST_MS,
    LATEST_MS,
    MAX_SLATE_ITEMS,
    MAX_WAIT_MS,
    Click,
    Impression,
    Recommendation,
    Request,
)
from stream.schemas import components_of

REFERENCE = "#/components/schemas/{name}"
MAX_OFFSET = 10**18 - 1


def openapi_document(*, needs_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of every route."""
    _, components = components_of((Click, Impression, Recommendation), ref_template=REFERENCE)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "sasrec-stream",
            "version": "1",
            "description": "Recommendations to fetch, clicks and impressions to send. What goes in and out are the "
            "records of the Kafka topics.",
        },
        "paths": {
            "/users/{user_id}/recommendations": {"get": _recommend(), "post": _recommend_among()},
            "/events": {"post": _take_events()},
            "/health": {"get": _health()},
        },
        "components": {"schemas": components | _own_schemas()},
    }
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _own_schemas() -> dict[str, Any]:
    return {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string", "description": "What is wrong, and what to do."}},
        },
        "Events": {
            "type": "object",
            "required": ["events"],
            "properties": {
                "events": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_EVENTS,
                    "items": {"oneOf": [_tagged("click", "Click"), _tagged("impression", "Impression")]},
                }
            },
        },
        "Wanted": _wanted(),
        "Taken": {
            "type": "object",
            "required": ["places"],
            "properties": {"places": {"type": "array", "items": {"$ref": REFERENCE.format(name="Place")}}},
        },
        "Place": {
            "type": "object",
            "description": "Where an event stands in Kafka, in the order of sending. The offset of a click may be sent "
            "as `fresh_through_offset`.",
            "required": ["topic", "partition", "offset"],
            "properties": {
                "topic": {"type": "string"},
                "partition": {"type": "integer", "minimum": 0},
                "offset": {"type": "integer", "minimum": 0},
            },
        },
    }


def _tagged(kind: str, record: str) -> dict[str, Any]:
    tag = {"type": "object", "required": ["type"], "properties": {"type": {"const": kind}}}
    return {"allOf": [{"$ref": REFERENCE.format(name=record)}, tag]}


def _answers(*failures: int, **successes: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": REFERENCE.format(name="Error")}}}
    made = {
        status.removeprefix("ok"): {
            "description": "Done.",
            "content": {"application/json": {"schema": {"$ref": REFERENCE.format(name=schema)}}},
        }
        for status, schema in successes.items()
    }
    return made | {str(status): {"description": DESCRIPTIONS[status], "content": error} for status in failures}


DESCRIPTIONS = {
    400: "It cannot be read.",
    401: "The token is missing or wrong.",
    413: "It is too large.",
    415: "The body is not JSON.",
    422: "A field is out of bounds.",
    503: "Kafka does not answer, or too many wait already; send it again.",
    504: "No recommender answered in time.",
}


USER = {
    "name": "user_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 256},
}


def _recommend_among() -> dict[str, Any]:
    return {
        "operationId": "recommend_among",
        "summary": "The same, with lists that are too long for a URL.",
        "parameters": [USER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REFERENCE.format(name="Wanted")}}},
        },
        "responses": _answers(400, 401, 413, 415, 422, 503, 504, ok200="Recommendation"),
    }


def _wanted() -> dict[str, Any]:
    """A request without what the path and the clock say."""
    _, components = components_of((Request,), ref_template=REFERENCE)
    properties = {name: schema for name, schema in components["Request"]["properties"].items() if name in WANTED}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _recommend() -> dict[str, Any]:
    ids = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 256}}
    return {
        "operationId": "recommend",
        "summary": "A slate for a user, made now.",
        "parameters": [
            USER,
            _number("k", 1, MAX_SLATE_ITEMS, "How many items; `policy.slate_size` where absent."),
            {"name": "candidate", "in": "query", "schema": ids, "description": "Only these; may be repeated."},
            {"name": "exclude", "in": "query", "schema": ids, "description": "Not these; may be repeated."},
            _number("fresh_through_ms", EARLIEST_MS, LATEST_MS, "Wait for a click at or after this event time."),
            _number("fresh_through_offset", 0, MAX_OFFSET, "Wait for the click at this offset of `clicks`."),
            _number("wait_ms", 0, MAX_WAIT_MS, "How long to wait for it, at most."),
        ],
        "responses": _answers(400, 401, 413, 422, 503, 504, ok200="Recommendation"),
    }


def _number(name: str, least: int, most: int, description: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _take_events() -> dict[str, Any]:
    return {
        "operationId": "send_events",
        "summary": "Clicks and impressions, all of them or none; a repeat of an event_id changes nothing.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REFERENCE.format(name="Events")}}},
        },
        "responses": _answers(400, 401, 413, 415, 422, 503, ok202="Taken"),
    }


def _health() -> dict[str, Any]:
    healthy = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
    return {
        "operationId": "health",
        "summary": "Whether the process takes requests; asks for no token.",
        "security": [],
        "responses": {"200": {"description": "It does.", "content": {"application/json": {"schema": healthy}}}},
    }
