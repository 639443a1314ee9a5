"""A schema registry with Confluent's REST API: what a schema id stands for. Answers are kept: an id never changes."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from stream.dead_letters import UnreadableError

TIMEOUT_SECONDS = 10.0
NOT_FOUND = 404
MAX_REFERENCES = 200


class RegistryError(RuntimeError):
    """The registry does not answer as it should: no fault of the message, so ask again later."""


class Schema(NamedTuple):
    """A schema and what it refers to."""

    kind: str
    """AVRO, PROTOBUF or JSON."""
    text: str
    references: dict[str, str]
    """The texts of all schemas that it leads to, by the name under which they are referred to; dependencies first."""


class Registry:
    """Asks over HTTP, once for each schema; `user` is `name:password`."""

    def __init__(self, url: str, *, user: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._user = user
        self._schemas: dict[int, Schema] = {}

    def schema(self, schema_id: int) -> Schema:
        """The schema of that id.

        Raises:
            UnreadableError: the registry knows no such id.
            RegistryError: it does not answer.
        """
        if schema_id not in self._schemas:
            answer = self._ask(f"/schemas/ids/{schema_id}")
            references: dict[str, str] = {}
            self._gather(answer.get("references") or [], references)
            self._schemas[schema_id] = Schema(answer.get("schemaType") or "AVRO", answer["schema"], references)
        return self._schemas[schema_id]

    def _gather(self, listed: list[dict[str, Any]], found: dict[str, str]) -> None:
        for one in listed:
            if one["name"] in found:
                continue
            if len(found) >= MAX_REFERENCES:
                raise UnreadableError("invalid", f"its schema refers to more than {MAX_REFERENCES} others")
            subject = urllib.parse.quote(one["subject"], safe="")
            answer = self._ask(f"/subjects/{subject}/versions/{one['version']}")
            self._gather(answer.get("references") or [], found)
            found[one["name"]] = answer["schema"]

    def _ask(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url + path, headers=self._headers())  # noqa: S310 - settings allow http(s) only
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - the same
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == NOT_FOUND:
                raise UnreadableError("invalid", f"the schema registry has no {path}") from error
            raise RegistryError(f"{self._url}{path}: HTTP {error.code}; see mapping.registry_url") from error
        except (OSError, ValueError) as error:
            raise RegistryError(f"{self._url}{path}: {error}; see mapping.registry_url") from error
        return found

    def _headers(self) -> dict[str, str]:
        accept = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if self._user is None:
            return accept
        return accept | {"Authorization": "Basic " + base64.b64encode(self._user.encode()).decode()}
