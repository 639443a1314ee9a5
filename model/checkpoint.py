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

Beside a version may stand `<version>.pinned`, an empty file: as long as it does, nothing prunes the version.

On a remote store, which knows no rename, the files are put where they belong, and the manifest last, by a put that
fails where there is one: a version without a manifest is absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

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
from model.store import PARTIAL, Place, RemotePlace, create, names, read, remove, replace, sync_folder, write_synced

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
CATALOGUE = "catalogue.msgpack"
TRAINER_TENSORS = "trainer.safetensors"
TRAINER = "trainer.msgpack"
Precision = Literal["float32", "bfloat16"]
VERSION = re.compile(r"\d{8,}")
DELTA = re.compile(r"(\d{8,})\.delta")
PINNED = re.compile(r"(\d{8,})\.pinned")


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
    precision: Precision = "float32"
    """What weights are rounded to where they are served; a full checkpoint's files hold them as they are learnt."""
    generation: Annotated[int, Meta(ge=0)] = 0
    """Rank of the lineage: a higher one takes the place of a lower one, whenever it was announced."""
    epoch: Annotated[int, Meta(ge=0)] = 0
    """Number of the trainer's term (trainer/lock.py); 0 where none was counted."""
    format: int = FORMAT
    files: dict[str, FileDigest] = {}

    @property
    def settings(self) -> ModelSettings:
        """The shape of the network."""
        return ModelSettings(**self.model)

    @property
    def name(self) -> str:
        """The version as recommendations carry it."""
        return f"{self.lineage}/{self.version}"


class WrittenCheckpoint(NamedTuple):
    """Where a checkpoint stands, and the hash that vouches for all of it."""

    path: Place
    manifest: Manifest
    manifest_sha256: str


class ServingModel(NamedTuple):
    """What a scoring worker needs of a checkpoint."""

    model: SASRec
    catalogue: Catalogue
    manifest: Manifest


def write_checkpoint(
    root: Place,
    manifest: Manifest,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, bytes],
) -> WrittenCheckpoint:
    """Writes the files of `tensors` (safetensors) and `documents` as one checkpoint; fills in `manifest.files`.

    Raises:
        FileExistsError: the version exists; a version is written once.
        OSError: it could not be written; nothing is left of it.
    """
    return write_files(root, manifest, encoded(tensors, documents))


def encoded(tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a checkpoint as they are now: what changes afterwards changes nothing in them."""
    return {name: safetensors.torch.save(_on_cpu(named)) for name, named in tensors.items()} | dict(documents)


def write_files(root: Place, manifest: Manifest, contents: Mapping[str, bytes]) -> WrittenCheckpoint:
    """Writes encoded files as one checkpoint, as `write_checkpoint` does."""
    path = version_path(root, manifest.lineage, manifest.version)
    files = {name: FileDigest(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()}
    manifest = msgspec.structs.replace(manifest, files=files)
    stated = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    if isinstance(path, Path):
        _write_folder(path, contents, stated)
    else:
        _put_folder(path, contents, stated)
    return WrittenCheckpoint(path, manifest, hashlib.sha256(stated).hexdigest())


def _write_folder(path: Path, contents: Mapping[str, bytes], manifest: bytes) -> None:
    if path.exists():
        raise _exists(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    aside.mkdir(parents=True)
    try:
        # 1.
        for name, content in contents.items():
            write_synced(aside / name, content)
        # 2.
        write_synced(aside / MANIFEST, manifest)
        sync_folder(aside)
        # 3.
        aside.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            remove(aside)
        raise
    sync_folder(path.parent)


def _put_folder(path: RemotePlace, contents: Mapping[str, bytes], manifest: bytes) -> None:
    if MANIFEST in names(path):
        raise _exists(path)
    # 1.
    for name, content in contents.items():
        replace(path / name, content)
    # 2. and 3.
    create(path / MANIFEST, manifest)


def _exists(path: Place) -> FileExistsError:
    return FileExistsError(f"{path} exists; go on with a higher version")


def version_path(root: Place, lineage: str, version: int) -> Place:
    """The folder of a version."""
    return root / lineage / f"{version:08d}"


def read_manifest(path: Place, *, sha256: str | None = None) -> Manifest:
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


def read_document(path: Place, manifest: Manifest, name: str) -> bytes:
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


def read_tensors(path: Place, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """A safetensors file's tensors, verified, on the CPU.

    Raises:
        BrokenCheckpointError: absent, truncated, altered or no safetensors file.
    """
    raw = read_document(path, manifest, name)
    try:
        return safetensors.torch.load(raw)
    except SafetensorError as error:
        raise BrokenCheckpointError(f"{path / name} cannot be read ({error}); use another checkpoint") from error


def read_serving(path: Place, *, sha256: str | None = None, device: str = "cpu") -> ServingModel:
    """Network and catalogue of a checkpoint, every file verified, the item table exactly as large as the catalogue.

    Raises:
        BrokenCheckpointError: any part is absent, altered, or does not fit the others.
    """
    manifest = read_manifest(path, sha256=sha256)
    tensors = rounded(read_tensors(path, manifest, MODEL), manifest.precision)
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


def rounded(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Weights as they are served, in float32."""
    if precision == "float32":
        return dict(tensors)
    return {name: tensor.bfloat16().float() for name, tensor in tensors.items()}


def newest_checkpoint(
    lineage: Place, *, on_broken: Callable[[BrokenCheckpointError], None]
) -> WrittenCheckpoint | None:
    """The highest version of a lineage's folder whose every file is whole; the broken ones above it are reported."""
    for version in reversed(full_versions(lineage)):
        path = lineage / f"{version:08d}"
        if isinstance(path, RemotePlace) and MANIFEST not in names(path):
            continue
        try:
            return verify(path)
        except BrokenCheckpointError as error:
            on_broken(error)
    return None


def full_versions(lineage: Place) -> list[int]:
    """The full checkpoints of a lineage's folder, whole or not, ascending."""
    return sorted(int(name) for name in names(lineage) if VERSION.fullmatch(name))


def delta_versions(lineage: Place) -> list[int]:
    """The deltas of a lineage's folder, ascending."""
    return sorted(int(found[1]) for name in names(lineage) if (found := DELTA.fullmatch(name)))


def pinned_versions(lineage: Place) -> frozenset[int]:
    """The versions of a lineage's folder that are never pruned."""
    return frozenset(int(found[1]) for name in names(lineage) if (found := PINNED.fullmatch(name)))


def pin(path: Place) -> None:
    """Keeps a version from pruning, whoever prunes, until somebody removes `<version>.pinned` beside it.

    Once or twice is the same; a folder that is no version is never pruned anyway.

    Raises:
        OSError: it cannot be written there.
    """
    if VERSION.fullmatch(path.name) and int(path.name) not in pinned_versions(path.parent):
        replace(path.parent / f"{path.name}.pinned", b"")


def verify(path: Place, *, sha256: str | None = None) -> WrittenCheckpoint:
    """Compares every file with the manifest; with `sha256`, only with the one that was announced.

    Raises:
        BrokenCheckpointError: any part is absent or altered.
    """
    manifest = read_manifest(path, sha256=sha256)
    for name in manifest.files:
        read_document(path, manifest, name)
    return WrittenCheckpoint(path, manifest, hashlib.sha256(_read(path / MANIFEST)).hexdigest())


def prune(lineage: Place, *, keep: int, spare: Collection[int] = ()) -> list[int]:
    """Removes all but the newest `keep` full versions, pinned ones and those to `spare`; returns what went.

    Deltas go with the second newest full version: nobody who follows the lineage needs one from before it. So does what
    crashes left. Only for the process that writes the lineage: another one's half-written version would go, too. A
    local folder is renamed before its files go, so that no reader finds half a checkpoint under a version's name; of a
    remote one the manifest goes first.
    """
    full = full_versions(lineage)
    kept = {*spare, *pinned_versions(lineage)}
    removed = [version for version in full[:-keep] if version not in kept]
    for version in removed:
        _remove_version(lineage / f"{version:08d}")
    prune_deltas(lineage, through=full[-2:][0] if full else 0)
    for name in names(lineage):
        if name.startswith(".") and name.endswith(PARTIAL):
            remove(lineage / name)
    return removed


def prune_deltas(lineage: Place, *, through: int) -> None:
    """Removes the deltas up to a version."""
    for version in delta_versions(lineage):
        if version <= through:
            remove(lineage / f"{version:08d}.delta")


def _remove_version(path: Place) -> None:
    if isinstance(path, Path):
        aside = path.with_name(f".{path.name}{PARTIAL}")
        path.rename(aside)
        remove(aside)
    else:
        remove(path / MANIFEST)
        remove(path)


class _Format(msgspec.Struct):
    format: int


def _on_cpu(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _read(path: Place) -> bytes:
    try:
        return read(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BrokenCheckpointError(f"{path} cannot be read ({reason}); use another checkpoint") from error
