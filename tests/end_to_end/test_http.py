"""`sasrec-stream up` with HTTP: events in and recommendations out without a Kafka client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.settings import environment_variable

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.usefixtures("broker")]

NOW_MS = 1_700_000_000_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_with_http_enabled_a_click_that_was_posted_is_in_the_recommendations_that_are_fetched(
    tmp_path: Path, wait_until: Callable[[Callable[[], Any]], Any]
) -> None:
    port = free_port()
    variables = {environment_variable("http.enabled"): "true", environment_variable("http.port"): str(port)}
    command = (sys.executable, "-m", "deploy.cli", "--state-directory", str(tmp_path), "up")
    with (tmp_path / "output.txt").open("wb") as file:
        up = subprocess.Popen(command, env=os.environ | variables, stdout=file, stderr=file)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:

        def ask(path: str, **given: Any) -> httpx2.Response | None:  # noqa: ANN401 - as httpx2 takes it
            """None while nobody answers."""
            assert up.poll() is None, (tmp_path / "output.txt").read_text()
            try:
                answer = client.request(given.pop("method", "GET"), path, **given)
            except httpx2.TransportError:
                return None
            return answer if answer.is_success else None

        def served(user_id: str) -> list[str]:
            answer = ask(f"/users/{user_id}/recommendations")
            return [] if answer is None else [item["item_id"] for item in answer.json()["items"]]

        try:
            click = {"type": "click", "event_id": "e1", "user_id": "ada", "item_id": "item-7", "timestamp_ms": NOW_MS}
            taken = wait_until(lambda: ask("/events", method="POST", json={"events": [click]}))
            popular = wait_until(lambda: served("bob"))
            own = ask(f"/users/ada/recommendations?fresh_through_offset={taken.json()['places'][0]['offset']}")
        finally:
            up.terminate()
            up.wait()

    assert popular == ["item-7"]
    assert own is not None
    assert own.json()["items"] == []
    assert own.json()["is_fresh"]
