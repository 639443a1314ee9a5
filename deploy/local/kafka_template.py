"""A formatted data folder, made once and copied: formatting starts a JVM for seconds, copying takes milliseconds."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from deploy.local.kafka_cache import cache_folder, made_once
from deploy.local.kafka_jvm import Jvm
from deploy.local.kafka_settings import server_properties


def copy_formatted(jvm: Jvm, data: Path) -> None:
    """Makes the data folder of a new Kafka; one that stands is left as it is."""
    if data.is_dir():
        return
    template = made_once(cache_folder() / f"kafka-format-{jvm.release.digest}", lambda aside: _format(jvm, aside))
    aside = data.with_name(f"{data.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(template, aside)
    aside.rename(data)


def _format(jvm: Jvm, data: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    with tempfile.NamedTemporaryFile("w", suffix=".properties") as file:
        file.write(server_properties(data, port=1, controller_port=2))
        file.flush()
        done = subprocess.run(
            jvm.command("kafka.tools.StorageTool", "format", "--config", file.name, "--cluster-id", cluster_id),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise ValueError(f"the data folder of the local Kafka could not be formatted: {done.stderr or done.stdout}")
