"""All settings in one tree, from a TOML file and the environment; unknown keys are refused by their dotted name.

A value comes from, in this order: the command line, the environment (`SASREC__TRAINER__LOSS=bce`), the TOML file
(`--settings FILE`, else `SASREC_SETTINGS`, else `sasrec-stream.toml` where it exists), the default in the owner's
section.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from deploy.http.settings import HttpSettings
from deploy.local.settings import AudienceSettings, SupervisorSettings
from model.settings import ModelSettings, PolicySettings, Section
from model.store import Place, place_of
from stream.mapping.settings import MappingSettings
from stream.settings import KafkaSettings, StreamSettings
from trainer.settings import GateSettings, RetrainSettings, TrainerSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Tree = Mapping[str, Any]

DEFAULT_FILE = Path("sasrec-stream.toml")
FILE_VARIABLE = "SASREC_SETTINGS"
ENV_PREFIX = "SASREC__"


class ScoringSettings(Section):
    """The scoring worker."""

    max_batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Users ranked in one forward pass."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 20.0
    """How long a user waits at most for others to be ranked with, in milliseconds; not at all where the worker has
    nothing else to do.
    """
    max_users: Annotated[int, Field(ge=1)] = 1_000_000
    """Users whose sequence is held in memory; the least recently active goes, and is treated as unknown until
    the next click.
    """
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of torch."""
    index_from_items: Annotated[int, Field(ge=1_000)] | None = None
    """A catalogue of more items is searched through an index that follows every version: scores and propensities stay
    exact, some of the best items are missed. Absent: every item is always scored.
    """
    index_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.04
    """The share of such a catalogue that a search looks through: more takes longer and misses less."""
    max_fresh_wait_ms: Annotated[int, Field(ge=0, le=60_000)] = 1_000
    """How long a request that asks for a click to be known may wait for it, from its arrival, in milliseconds."""
    checkpoint: str | None = None
    """Serve from this checkpoint folder, or its URL, instead of what is announced on `models`."""


class RegistrySettings(Section):
    """The database of model versions and jobs."""

    url: str | None = None
    """SQLAlchemy URL; SQLite in `state.directory` where absent, `postgresql+psycopg://...` for many machines."""


class StateSettings(Section):
    """What a process keeps on disk."""

    directory: Path = Path(".run")
    """RocksDB, checkpoints, the registry, the local Kafka, logs."""
    checkpoints: str | None = None
    """Where checkpoints are kept: a folder, or an s3://, gs:// or abfs:// URL (extras s3, gcs, azure), the same for
    every process; `state.directory`/checkpoints where absent.
    """

    @field_validator("checkpoints")
    @classmethod
    def _can_be_reached(cls, checkpoints: str | None) -> str | None:
        if checkpoints is not None:
            place_of(checkpoints)
        return checkpoints


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


class Settings(Section):
    """Every section, each next to its owner."""

    kafka: KafkaSettings = KafkaSettings()
    stream: StreamSettings = StreamSettings()
    mapping: MappingSettings = MappingSettings()
    model: ModelSettings = ModelSettings()
    policy: PolicySettings = PolicySettings()
    trainer: TrainerSettings = TrainerSettings()
    retrain: RetrainSettings = RetrainSettings()
    gate: GateSettings = GateSettings()
    scoring: ScoringSettings = ScoringSettings()
    http: HttpSettings = HttpSettings()
    registry: RegistrySettings = RegistrySettings()
    state: StateSettings = StateSettings()
    observe: ObserveSettings = ObserveSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    audience: AudienceSettings = AudienceSettings()

    @property
    def checkpoints(self) -> Place:
        """The folder of all lineages, here or in a store."""
        return place_of(self.state.checkpoints or self.state.directory / "checkpoints")

    @property
    def kafka_directory(self) -> Path:
        """The folder of the local Kafka."""
        return self.state.directory / "kafka"

    @property
    def registry_url(self) -> str:
        """The registry's database, SQLite in the state folder unless set."""
        return self.registry.url or f"sqlite:///{(self.state.directory / 'registry.db').absolute()}"


def load_settings(file: Path | None = None, **overrides: Tree) -> Settings:
    """Reads file and environment; `overrides` are sections from the command line, such as `kafka={"partitions": 8}`.

    Raises:
        ValueError: one line that names each wrong key, where it was set, and the nearest known one.
    """
    sources = (_read_file(file or settings_file()), *_read_environment(os.environ), overrides)
    nothing: Tree = {}
    try:
        return Settings.model_validate(functools.reduce(_merged, sources, nothing))
    except ValidationError as error:
        raise ValueError("settings: " + "; ".join(_explained(wrong) for wrong in error.errors())) from error


def settings_file() -> Path | None:
    """The TOML file that is read where none is named on the command line, or None."""
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def dotted_keys() -> list[str]:
    """Every setting by its dotted name, in the order of the sections."""
    return [
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        for key in type(field.default).model_fields
    ]


def environment_variable(dotted_key: str) -> str:
    """The environment variable that sets a key: `SASREC__TRAINER__LOSS` for `trainer.loss`."""
    return ENV_PREFIX + dotted_key.upper().replace(".", "__")


def _read_file(file: Path | None) -> Tree:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"settings: {file}: {error.strerror}; correct --settings or {FILE_VARIABLE}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"settings: {file} is not TOML: {error}") from error


def _read_environment(variables: Mapping[str, str]) -> Iterator[Tree]:
    for name, value in variables.items():
        if name.startswith(ENV_PREFIX):
            keys = name.removeprefix(ENV_PREFIX).lower().split("__")
            yield functools.reduce(lambda tree, key: {key: tree}, reversed(keys), value)  # type: ignore[arg-type]  # the innermost is text


def _merged(under: Tree, over: Tree) -> Tree:
    """Both trees; where both set a key, `over` wins."""
    both = {
        key: _merged(under[key], over[key])
        for key in under.keys() & over.keys()
        if isinstance(under[key], Mapping) and isinstance(over[key], Mapping)
    }
    return {**under, **over, **both}


def _explained(wrong: ErrorDetails) -> str:
    key = ".".join(str(part) for part in wrong["loc"])
    variables = [name for name in os.environ if name.startswith(environment_variable(key))]
    where = f" (set by {variables[0]})" if variables else ""
    if wrong["type"] != "extra_forbidden":
        return f"{key}{where}: {wrong['msg']}"
    return f"{key}{where}: no such setting" + _nearest(key, wrong["input"])


def _nearest(key: str, value: object) -> str:
    """What was probably meant by an unknown section or key; `value` is what it was set to."""
    unknown = f"{key}.{next(iter(value), '')}" if isinstance(value, Mapping) else key
    near = difflib.get_close_matches(unknown, dotted_keys(), n=1)
    return f"; did you mean {near[0]}?" if near else "; `sasrec-stream settings` lists them all"
