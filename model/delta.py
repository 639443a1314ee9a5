"""What changed between two published versions of a model: a small file, hash-chained to the version before it.

A delta is the file `<root>/<lineage>/<version, 8 digits>.delta`. It holds the rows of the table that changed, every
dense weight, what became of the catalogue, and a header that names

- its parent, the version it goes on top of, by number and hash, and
- its base, the full checkpoint from which the chain begins, by number and the hash of its manifest.

A delta's own hash comes from whoever names it: the announcement, or the header of the delta after it. So one announced
hash vouches for the whole chain down to its base, and a gap, a torn or an altered file cannot go unnoticed. The file is
a safetensors file, its bytes sorted by significance and compressed (zstd): high bytes of weights are alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from msgspec import Meta
from safetensors import SafetensorError
from torch import Tensor

from model.catalogue import CatalogueChanges
from model.checkpoint import BrokenCheckpointError, Manifest, ServingModel
from model.sasrec import SASRec
from model.store import Place, create, read

FORMAT = 1
MAGIC = b"sasrec-stream delta\n"
SUFFIX = ".delta"
TABLE = "item_RD"
ROWS = "rows_U"
DENSE = "dense."
MAX_BYTES = 1 << 34
"""No delta is larger: what says so is not believed, and no memory is set aside for it."""


class Link(msgspec.Struct, frozen=True):
    """A version and the hash that vouches for it: of its delta, or of the manifest of its full checkpoint."""

    version: Annotated[int, Meta(ge=1)]
    sha256: str


class DeltaHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a delta is. Unknown fields are ignored on reading, an unknown `format` is refused."""

    manifest: Manifest
    """Of the version that it leads to; names no files."""
    parent: Link
    base: Link
    table_rows: Annotated[int, Meta(ge=1)]
    body_bytes: Annotated[int, Meta(ge=0, le=MAX_BYTES)]
    """Before compression."""
    format: int = FORMAT


class Delta(NamedTuple):
    """One step of the chain, verified. Shapes: U rows that changed, D units."""

    header: DeltaHeader
    rows_U: Tensor
    item_UD: Tensor
    dense: dict[str, Tensor]
    changes: CatalogueChanges
    cut: bytes
    """Which examples the version has learnt, in the trainer's own words."""

    @property
    def version(self) -> int:
        """The version that it leads to."""
        return self.header.manifest.version


class Changes(NamedTuple):
    """What a delta is made of."""

    rows_U: Tensor
    item_UD: Tensor
    dense: Mapping[str, Tensor]
    table_rows: int
    catalogue: CatalogueChanges
    cut: bytes


class _Body(msgspec.Struct, frozen=True):
    weights: bytes
    catalogue: CatalogueChanges
    cut: bytes


class _Format(msgspec.Struct):
    format: int


def delta_path(root: Place, lineage: str, version: int) -> Place:
    """The file of a version's delta."""
    return root / lineage / f"{version:08d}{SUFFIX}"


def changes_of(network: SASRec, rows_U: Tensor, *, rows: int, catalogue: CatalogueChanges, cut: bytes) -> Changes:
    """A copy of what changed: those rows of the first `rows`, and every dense weight."""
    tensors = network.tensors(rows=rows)
    table_RD = tensors.pop(TABLE)
    dense = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    return Changes(rows_U.cpu(), table_RD[rows_U].cpu(), dense, rows, catalogue, cut)


def encode_delta(manifest: Manifest, changes: Changes, *, parent: Link, base: Link) -> bytes:
    """The bytes of a delta, its weights in the manifest's precision; the same changes give the same bytes."""
    kind = torch.bfloat16 if manifest.precision == "bfloat16" else torch.float32
    tensors = {ROWS: changes.rows_U, TABLE: changes.item_UD.to(kind)}
    tensors |= {DENSE + name: tensor.to(kind) for name, tensor in changes.dense.items()}
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    body = msgspec.msgpack.encode(_Body(weights, changes.catalogue, changes.cut))
    header = DeltaHeader(
        manifest=manifest, parent=parent, base=base, table_rows=changes.table_rows, body_bytes=len(body)
    )
    stated = msgspec.json.encode(header)
    packed: bytes = pa.compress(_by_significance(body), codec="zstd", asbytes=True)
    return MAGIC + len(stated).to_bytes(4, "little") + stated + packed


def write_delta(root: Place, raw: bytes, *, lineage: str, version: int) -> Link:
    """Writes an encoded delta, whole or not at all.

    Raises:
        FileExistsError: the version's delta exists; a version is written once.
    """
    create(delta_path(root, lineage, version), raw)
    return Link(version, hashlib.sha256(raw).hexdigest())


def read_delta(path: Place, *, sha256: str) -> Delta:
    """A delta, verified against the hash by which it was named.

    Raises:
        BrokenCheckpointError: absent, torn, altered, or of a format that this version does not know.
    """
    try:
        raw = read(path)
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error}); wait for the next full checkpoint") from error
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise BrokenCheckpointError(f"{path} is torn or was altered; wait for the next full checkpoint")
    try:
        return _decoded(raw, path)
    except (msgspec.DecodeError, SafetensorError, KeyError, ValueError, pa.ArrowException) as error:
        if isinstance(error, BrokenCheckpointError):
            raise
        raise BrokenCheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error


def apply_delta(serving: ServingModel, delta: Delta) -> ServingModel:
    """Changes network and catalogue in place to the delta's version, if they are its parent's.

    The network may come back as another object: its table grows by halves, so that growth copies each row O(1) times.

    Raises:
        BrokenCheckpointError: it does not fit; nothing was changed.
    """
    network, catalogue = serving.model, serving.catalogue
    stated = network.state_dict()
    dense = {name: stated[name] for name in delta.dense if name in stated}
    fits = (
        delta.header.manifest.model == serving.manifest.model
        and delta.header.manifest.precision == serving.manifest.precision
        and set(delta.dense) == set(stated) - {TABLE}
        and all(tensor.shape == delta.dense[name].shape for name, tensor in dense.items())
        and delta.item_UD.shape == (len(delta.rows_U), network.settings.units)
        and delta.header.table_rows == delta.changes.size
        and bool(((delta.rows_U >= 0) & (delta.rows_U < delta.header.table_rows)).all())
    )
    if not fits:
        raise BrokenCheckpointError(
            f"delta {delta.header.manifest.lineage}/{delta.version} does not fit the model; wait for the next full one"
        )
    try:
        catalogue.apply(delta.changes)
    except ValueError as error:
        raise BrokenCheckpointError(str(error)) from error
    with torch.no_grad():
        if delta.header.table_rows > network.capacity:
            network.grow(max(delta.header.table_rows, catalogue.capacity))
            network.requires_grad_(requires_grad=False)
        network.item_RD[delta.rows_U.to(network.device)] = delta.item_UD.to(network.item_RD)
        for name, tensor in dense.items():
            tensor.copy_(delta.dense[name])
    return ServingModel(network, catalogue, delta.header.manifest)


def _decoded(raw: bytes, path: Place) -> Delta:
    if not raw.startswith(MAGIC):
        raise BrokenCheckpointError(f"{path} is no delta; wait for the next full checkpoint")
    start = len(MAGIC) + 4
    end = start + int.from_bytes(raw[len(MAGIC) : start], "little")
    stated = msgspec.json.decode(raw[start:end], type=_Format).format
    if stated != FORMAT:
        raise BrokenCheckpointError(f"{path} has format {stated}, this version reads {FORMAT}; upgrade sasrec-stream")
    header = msgspec.json.decode(raw[start:end], type=DeltaHeader)
    packed = pa.decompress(raw[end:], header.body_bytes, codec="zstd", asbytes=True)
    body = msgspec.msgpack.decode(_in_order(packed), type=_Body)
    tensors = safetensors.torch.load(body.weights)
    dense = {name.removeprefix(DENSE): tensor for name, tensor in tensors.items() if name.startswith(DENSE)}
    return Delta(header, tensors[ROWS], tensors[TABLE], dense, body.catalogue, body.cut)


def _by_significance(raw: bytes) -> bytes:
    """Every fourth byte together; what is left over stands at the end."""
    whole = len(raw) // 4 * 4
    return np.frombuffer(raw[:whole], dtype=np.uint8).reshape(-1, 4).T.tobytes() + raw[whole:]


def _in_order(sorted_bytes: bytes) -> bytes:
    """The way back."""
    whole = len(sorted_bytes) // 4 * 4
    return np.frombuffer(sorted_bytes[:whole], dtype=np.uint8).reshape(4, -1).T.tobytes() + sorted_bytes[whole:]
