"""Reads the metrics that the processes of this machine serve."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from deploy.observe.endpoint import read_process

TIMEOUT_SECONDS = 2.0


class Sample(NamedTuple):
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


def scrape(
    state_directory: Path, name: str, *, host: str, pid: int, only: Collection[str] = ()
) -> tuple[Sample, ...] | None:
    """What that process serves just now; None where it does not answer, or another process stands there.

    With `only`, of these metrics alone, which costs the process and us next to nothing.
    """
    running = read_process(state_directory, name)
    if running is None or running.pid != pid:
        return None
    try:
        text = _get(host, running.metrics_port, only=only)
    except (OSError, http.client.HTTPException):
        return None
    families = text_string_to_metric_families(text)
    return tuple(Sample(one.name, one.labels, one.value) for family in families for one in family.samples)


def _get(host: str, port: int, *, only: Collection[str]) -> str:
    query = f"?{urlencode([('name[]', name) for name in only])}" if only else ""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)) as connection:
        connection.request("GET", f"/metrics{query}")
        return connection.getresponse().read().decode()
