"""Settings of the HTTP process."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field, model_validator

from model.settings import Section

LOCALHOST = "localhost"


class HttpSettings(Section):
    """HTTP beside Kafka: recommendations to fetch, events to send."""

    enabled: bool = False
    """Whether `sasrec-stream up` starts the process; `run http` starts it in any case."""
    host: str = "127.0.0.1"
    """Where it listens; anything but a loopback address takes a token."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_080
    """0 takes a free one, which the process logs."""
    token: Annotated[str, Field(min_length=16, pattern=r"^[\x21-\x7e]+$")] | None = None
    """What clients send as `Authorization: Bearer <token>`; best set by the environment, SASREC__HTTP__TOKEN."""
    timeout_seconds: Annotated[float, Field(gt=0.0, le=60.0)] = 2.0
    """How long a client waits for a slate or for Kafka's acknowledgement, in seconds, beside what the request itself
    wants to wait for a click.
    """
    max_body_bytes: Annotated[int, Field(ge=1_024, le=64_000_000)] = 1_000_000
    """Largest body taken, in bytes."""
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Requests that wait for a slate at once; the next are told to come again."""

    @model_validator(mode="after")
    def _others_need_a_token(self) -> HttpSettings:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"{self.host} is not this machine alone; set http.token, or http.host to 127.0.0.1")
        return self


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can come in; a name other than localhost counts as not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == LOCALHOST
