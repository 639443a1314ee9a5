"""A schema registry as small as Confluent's documented REST API allows: register, fetch by id, fetch by version."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    by_id: list[dict[str, Any]]
    by_subject: dict[str, list[dict[str, Any]]]

    def do_POST(self) -> None:
        _, _, subject, _ = self.path.split("/")
        schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.by_id.append(schema)
        self.by_subject.setdefault(urllib.parse.unquote(subject), []).append(schema)
        self._answer(200, {"id": len(self.by_id)})

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", "schemas", "ids", number] if 1 <= int(number) <= len(self.by_id):
                self._answer(200, self.by_id[int(number) - 1])
            case ["", "subjects", subject, "versions", version] if urllib.parse.unquote(subject) in self.by_subject:
                self._answer(200, self.by_subject[urllib.parse.unquote(subject)][int(version) - 1])
            case _:
                self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def log_message(self, *_: object) -> None:
        """A test has nothing to say."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The registry's URL while it runs."""
    handler = type("Handler", (_Handler,), {"by_id": [], "by_subject": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
