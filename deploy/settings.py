"""All settings in one tree, from a TOML file and the environment; unknown keys are refused by their dotted name.

A value comes from, in this order: the command line, the environment (`SASREC__TRAINER__LOSS=bce`), the TOML file
(`--settings FILE`, else `SASREC_SETTINGS`, else `sasrec-stream.toml` where it exists), the default in the owner's
section.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from model.settings import ModelSettings, PolicySettings, Section
from stream.settings import KafkaSettings, StreamSettings
from trainer.settings import GateSettings, RetrainSettings, TrainerSettings

DEFAULT_FILE = Path("sasrec-stream.toml")
FILE_VARIABLE = "SASREC_SETTINGS"
ENV_PREFIX = "SASREC__"


class ScoringSettings(Section):
    """The scoring worker."""

    max_batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Users ranked in one forward pass."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """How long a user waits for others to be ranked with, in milliseconds."""
    max_users: Annotated[int, Field(ge=1)] = 1_000_000
    """Users whose sequence is held in memory; the least recently active goes, and is treated as unknown until
    the next click.
    """
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of torch."""
    checkpoint: Path | None = None
    """Serve from this checkpoint folder instead of what is announced on `models`."""


class RegistrySettings(Section):
    """The database of model versions and jobs."""

    url: str | None = None
    """SQLAlchemy URL; SQLite in `state.directory` where absent, `postgresql+psycopg://...` for many machines."""


class StateSettings(Section):
    """What a process keeps on disk."""

    directory: Path = Path(".run")
    """RocksDB, checkpoints, the registry, the local Kafka, logs."""


class ObserveSettings(Section):
    """Logs and metrics."""

    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    metrics_host: str = "127.0.0.1"
    """Where each process serves Prometheus metrics."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of the endpoint; 0 takes a free one, which the process logs and writes to
    `state.directory`/processes/<name>.json.
    """


class Settings(BaseSettings):
    """Every section, each next to its owner."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    kafka: KafkaSettings = KafkaSettings()
    stream: StreamSettings = StreamSettings()
    model: ModelSettings = ModelSettings()
    policy: PolicySettings = PolicySettings()
    trainer: TrainerSettings = TrainerSettings()
    retrain: RetrainSettings = RetrainSettings()
    gate: GateSettings = GateSettings()
    scoring: ScoringSettings = ScoringSettings()
    registry: RegistrySettings = RegistrySettings()
    state: StateSettings = StateSettings()
    observe: ObserveSettings = ObserveSettings()

    @property
    def checkpoints(self) -> Path:
        """The folder of all lineages."""
        return self.state.directory / "checkpoints"

    @property
    def registry_url(self) -> str:
        """The registry's database, SQLite in the state folder unless set."""
        return self.registry.url or f"sqlite:///{(self.state.directory / 'registry.db').absolute()}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line before environment before file; no .env, no secrets folder."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, settings_file())


def settings_file() -> Path | None:
    """The TOML file in force, or None.

    Raises:
        ValueError: SASREC_SETTINGS names a file that does not exist.
    """
    named = os.environ.get(FILE_VARIABLE)
    if named is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    if not Path(named).is_file():
        raise ValueError(f"{FILE_VARIABLE} names {named}, which is no file; write it or unset {FILE_VARIABLE}")
    return Path(named)


def load_settings(**overrides: Mapping[str, Any]) -> Settings:
    """Reads file and environment; `overrides` are sections from the command line, such as `kafka={"partitions": 8}`.

    Raises:
        ValueError: one line for each wrong key, with its dotted name.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic builds the sections from mappings
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}" for wrong in error.errors()]
        raise ValueError("settings: " + "; ".join(lines)) from error
