"""Checkpoints that are whole or absent (I4): written aside, hashed, the manifest last, fsync, rename.

A checkpoint is the folder `<root>/<lineage>/<version, 8 digits>/`:

    model.safetensors      the network's weights            catalogue.msgpack   ids and rows
    trainer.safetensors    optimiser state (optional)       trainer.msgpack     offsets, marks, random state (optional)
    manifest.json          what it is, and size and SHA-256 of every other file

Nothing is ever unpickled, and no file is read before its hash was compared with the manifest. Writing:

1. every file goes into `<lineage>/.<version>.<random>.partial` and is fsynced;
2. the manifest, with their hashes, goes there last and is fsynced, then the folder;
3. the folder is renamed to its version, and the lineage's folder is fsynced.

A crash before 3 leaves a `.partial` folder that no reader looks at and `prune` removes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import safetensors.torch
import torch
from msgspec import Meta
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from model.catalogue import Catalogue
from model.sasrec import SASRec
from model.settings import ModelSettings

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
CATALOGUE = "catalogue.msgpack"
TRAINER_TENSORS = "trainer.safetensors"
TRAINER = "trainer.msgpack"
PARTIAL = ".partial"


class BrokenCheckpointError(ValueError):
    """A checkpoint that must not be used; the message names the file and says what to do."""


class FileDigest(msgspec.Struct, frozen=True):
    """What a file must be."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is. Unknown fields are ignored on reading, an unknown `format` is refused."""

    lineage: str
    version: Annotated[int, Meta(ge=1)]
    created_at_ms: int
    model: dict[str, Any]
    """ModelSettings, by field."""
    examples_trained: Annotated[int, Meta(ge=0)]
    trained_through_ms: int | None = None
    """Event time of the newest click learnt."""
    trained_through_arrival_ms: int | None = None
    """Kafka's timestamp of that click."""
    format: int = FORMAT
    files: dict[str, FileDigest] = {}

    @property
    def settings(self) -> ModelSettings:
        """The shape of the network."""
        return ModelSettings(**self.model)


class WrittenCheckpoint(NamedTuple):
    """Where a checkpoint stands, and the hash that vouches for all of it."""

    path: Path
    manifest: Manifest
    manifest_sha256: str


class ServingModel(NamedTuple):
    """What a scoring worker needs of a checkpoint."""

    model: SASRec
    catalogue: Catalogue
    manifest: Manifest


def write_checkpoint(
    root: Path,
    manifest: Manifest,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, bytes],
) -> WrittenCheckpoint:
    """Writes the files of `tensors` (safetensors) and `documents` as one checkpoint; fills in `manifest.files`.

    Raises:
        FileExistsError: the version exists; a version is written once.
    """
    lineage = root / manifest.lineage
    lineage.mkdir(parents=True, exist_ok=True)
    path = version_path(root, manifest.lineage, manifest.version)
    if path.exists():
        raise FileExistsError(f"{path} exists; go on with a higher version")
    aside = lineage / f".{path.name}.{secrets.token_hex(4)}{PARTIAL}"
    aside.mkdir()
    contents = {name: safetensors.torch.save(_on_cpu(named)) for name, named in tensors.items()} | dict(documents)
    # 1.
    files = {name: _write(aside / name, content) for name, content in contents.items()}
    # 2.
    manifest = msgspec.structs.replace(manifest, files=files)
    digest = _write(aside / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    _sync_folder(aside)
    # 3.
    aside.rename(path)
    _sync_folder(lineage)
    return WrittenCheckpoint(path, manifest, digest.sha256)


def version_path(root: Path, lineage: str, version: int) -> Path:
    """The folder of a version."""
    return root / lineage / f"{version:08d}"


def read_manifest(path: Path, *, sha256: str | None = None) -> Manifest:
    """The manifest of a checkpoint folder; with `sha256`, only the one that was announced.

    Raises:
        BrokenCheckpointError: absent, altered, unreadable, or of a format that this version does not know.
    """
    raw = _read(path / MANIFEST)
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise BrokenCheckpointError(f"{path / MANIFEST} is not the one that was announced; use another checkpoint")
    try:
        stated = msgspec.json.decode(raw, type=_Format).format
        if stated != FORMAT:
            raise BrokenCheckpointError(
                f"{path} has format {stated}, this version reads {FORMAT}; upgrade sasrec-stream"
            )
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise BrokenCheckpointError(f"{path / MANIFEST} cannot be read ({error}); use another checkpoint") from error


def read_document(path: Path, manifest: Manifest, name: str) -> bytes:
    """A file's bytes, verified.

    Raises:
        BrokenCheckpointError: absent, truncated or altered.
    """
    expected = manifest.files.get(name)
    if expected is None:
        raise BrokenCheckpointError(f"{path} has no {name}; use another checkpoint")
    raw = _read(path / name)
    if len(raw) != expected.bytes:
        raise BrokenCheckpointError(
            f"{path / name} has {len(raw)} bytes instead of {expected.bytes}; use another checkpoint"
        )
    if hashlib.sha256(raw).hexdigest() != expected.sha256:
        raise BrokenCheckpointError(f"{path / name} was altered (its SHA-256 differs); use another checkpoint")
    return raw


def read_tensors(path: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """A safetensors file's tensors, verified, on the CPU.

    Raises:
        BrokenCheckpointError: absent, truncated, altered or no safetensors file.
    """
    raw = read_document(path, manifest, name)
    try:
        return safetensors.torch.load(raw)
    except SafetensorError as error:
        raise BrokenCheckpointError(f"{path / name} cannot be read ({error}); use another checkpoint") from error


def read_serving(path: Path, *, sha256: str | None = None, device: str = "cpu") -> ServingModel:
    """Network and catalogue of a checkpoint, every file verified, the item table exactly as large as the catalogue.

    Raises:
        BrokenCheckpointError: any part is absent, altered, or does not fit the others.
    """
    manifest = read_manifest(path, sha256=sha256)
    tensors = read_tensors(path, manifest, MODEL)
    try:
        catalogue = Catalogue.from_document(read_document(path, manifest, CATALOGUE))
        model = SASRec.from_tensors(manifest.settings, tensors, capacity=catalogue.size)
    except BrokenCheckpointError:
        raise
    except (ValueError, KeyError, ValidationError) as error:
        raise BrokenCheckpointError(f"{path}: {error}") from error
    if model.capacity != catalogue.size:
        raise BrokenCheckpointError(f"{path}: table and catalogue differ in size; use another checkpoint")
    return ServingModel(model.to(torch.device(device)).requires_grad_(requires_grad=False), catalogue, manifest)


def newest_checkpoint(lineage: Path, *, on_broken: Callable[[BrokenCheckpointError], None]) -> WrittenCheckpoint | None:
    """The highest version of a lineage's folder whose every file is whole; the broken ones above it are reported."""
    for path in sorted(_versions(lineage), reverse=True):
        try:
            return verify(path)
        except BrokenCheckpointError as error:
            on_broken(error)
    return None


def verify(path: Path, *, sha256: str | None = None) -> WrittenCheckpoint:
    """Compares every file with the manifest; with `sha256`, only with the one that was announced.

    Raises:
        BrokenCheckpointError: any part is absent or altered.
    """
    manifest = read_manifest(path, sha256=sha256)
    for name in manifest.files:
        read_document(path, manifest, name)
    return WrittenCheckpoint(path, manifest, hashlib.sha256(_read(path / MANIFEST)).hexdigest())


def prune(lineage: Path, *, keep: int, spare: Collection[int] = ()) -> list[int]:
    """Removes all but the newest `keep` versions and those to `spare`, and what crashes left; returns what went.

    Only for the process that writes the lineage: another one's half-written version would go, too. A folder is renamed
    before its files go, so that no reader finds half a checkpoint under a version's name.
    """
    removed = []
    for path in sorted(_versions(lineage))[:-keep]:
        if int(path.name) not in spare:
            path.rename(path.with_name(f".{path.name}{PARTIAL}"))
            removed.append(int(path.name))
    for path in lineage.glob(f".*{PARTIAL}"):
        shutil.rmtree(path)
    return removed


class _Format(msgspec.Struct):
    format: int


def _versions(lineage: Path) -> Iterator[Path]:
    return (path for path in lineage.glob("*") if re.fullmatch(r"\d{8,}", path.name)) if lineage.is_dir() else iter(())


def _on_cpu(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _write(path: Path, content: bytes) -> FileDigest:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(hashlib.sha256(content).hexdigest(), len(content))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error.strerror}); use another checkpoint") from error


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
