"""One real Kafka for the whole session, and topics of its own for every test."""

from __future__ import annotations

import importlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import hypothesis
import pytest

from deploy.local.kafka import LocalKafka
from deploy.local.kafka_jvm import find_jvm
from stream.admin import create_topics
from stream.clients import admin
from stream.settings import KafkaSettings

HANGS_AFTER_SECONDS = 240.0  # not how fast anything has to be, but when to stop waiting; below pytest's own timeout

# No test judges by time, and CI runs the same examples every time.
hypothesis.settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("ours")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """The broker of the session, on a free port; without Java or jars its tests are skipped, but never in CI."""
    try:
        find_jvm(report=lambda _: None)
    except ValueError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no local Kafka can be had: {error}")
    local = LocalKafka(tmp_path_factory.mktemp("state") / "kafka", port=0)
    local.start()
    yield local
    local.stop()


@pytest.fixture
def kafka(broker: LocalKafka) -> Iterator[KafkaSettings]:
    """Settings with a prefix that only this test has, and its topics."""
    settings = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.", partitions=2
    )
    create_topics(settings)
    yield settings
    with admin(settings) as client:
        client.delete_topics([name for name in client.list_topics() if name.startswith(settings.topic_prefix)])


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """A real S3 server on a free port, moto's, and its bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = importlib.import_module("moto.server")  # takes a second: only for those who need it
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("checkpoints")
        yield "s3://checkpoints"
    server.stop()


@pytest.fixture
def s3_url(_s3_server: str) -> str:
    """A folder that only this test has."""
    return f"{_s3_server}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def wait_until() -> Callable[[Callable[[], Any]], Any]:
    """Asks again until the answer is true and gives it back; a test waits for a condition, never for a time."""

    def wait(condition: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the condition answers
        deadline = time.monotonic() + HANGS_AFTER_SECONDS
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"not true in {HANGS_AFTER_SECONDS:.0f} s: something hangs"
            time.sleep(0.02)  # reason: between two questions
        return answer

    return wait
