"""From an announced version back to what a reader has, and forward again: the very weights that were published.

The chain is walked from the announced delta to its parents, each verified by the hash that its child names, until it
meets what the reader holds or the full checkpoint from which the chain begins. Only then is anything applied.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import safetensors.torch
import torch

from model.checkpoint import (
    MODEL,
    BrokenCheckpointError,
    Manifest,
    ServingModel,
    read_serving,
    read_tensors,
    rounded,
    version_path,
)
from model.delta import Delta, DeltaHeader, Link, apply_delta, read_delta
from model.store import Place

HELD = 4
"""Deltas of a walk that are kept in memory; of a longer one the older are read again when they are applied."""


class Standing(NamedTuple):
    """The version that a reader holds, by what it came to it: several links may lead to the same weights."""

    delta: Link | None
    full: Link | None

    def carries(self, header: DeltaHeader) -> bool:
        """Whether the delta goes on top of it."""
        on_base = header.base == self.full and header.parent.version == header.base.version
        return on_base or (self.delta is not None and header.parent == self.delta)


NOTHING = Standing(None, None)


class Route(NamedTuple):
    """How to come to a version."""

    base: Link | None
    """The full checkpoint to begin with; None where what the reader holds will do."""
    links: list[Link]
    """Deltas, oldest first."""
    held: dict[int, Delta]
    """Some of them, by version."""


class BrokenChainError(BrokenCheckpointError):
    """A delta of the chain is missing or harmed; what comes after it is of no use until the next full checkpoint."""

    def __init__(self, reason: str, *, hole: Link, base: Link | None) -> None:
        super().__init__(reason)
        self.hole = hole
        self.base = base
        """From which the chain begins, as far as it could be read."""


def route_to(newest: Link, lineage: Place, *, standing: Standing = NOTHING) -> Route:
    """Walks back from an announced delta.

    Raises:
        BrokenChainError: a delta on the way is missing or harmed.
    """
    links: list[Link] = []
    held: dict[int, Delta] = {}
    base: Link | None = None
    link = newest
    while True:
        delta = _read(link, lineage, base=base)
        links.append(link)
        if len(held) < HELD:
            held[link.version] = delta
        header = delta.header
        base = header.base
        if standing.carries(header):
            return Route(None, links[::-1], held)
        if header.parent.version == base.version:
            return Route(base, links[::-1], held)
        link = header.parent


def delta_at(route: Route, link: Link, lineage: Place) -> Delta:
    """One delta of a route, verified."""
    return route.held.get(link.version) or _read(link, lineage, base=route.base)


class Rebuilt(NamedTuple):
    """A version that a chain of deltas led to."""

    serving: ServingModel
    cut: bytes
    """Which examples it has learnt, in the trainer's own words."""


def rebuild(newest: Link, lineage: Place, *, device: str = "cpu") -> Rebuilt:
    """The announced version from nothing: the full checkpoint and every delta after it.

    Raises:
        BrokenCheckpointError: any part is missing or harmed.
    """
    route = route_to(newest, lineage)
    assert route.base is not None
    serving = read_base(route.base, lineage, device=device)
    cut = b""
    for link in route.links:
        delta = delta_at(route, link, lineage)
        serving, cut = apply_delta(serving, delta), delta.cut
    return Rebuilt(serving, cut)


def read_base(base: Link, lineage: Place, *, device: str = "cpu") -> ServingModel:
    """The full checkpoint from which a chain begins.

    Raises:
        BrokenCheckpointError: any part is missing or harmed.
    """
    return read_serving(version_path(lineage.parent, lineage.name, base.version), sha256=base.sha256, device=device)


def is_proven(serving: ServingModel, path: Place, manifest: Manifest) -> bool:
    """Whether weights that deltas led to are, to the byte, those of the full checkpoint of the same version.

    Raises:
        BrokenCheckpointError: its weights are rounded for serving, so that they have to be read, and cannot be.
    """
    tensors = serving.model.tensors(rows=serving.catalogue.size)
    if manifest.precision != "float32":
        full = rounded(read_tensors(path, manifest, MODEL), manifest.precision)
        return full.keys() == tensors.keys() and all(torch.equal(full[name], tensors[name].cpu()) for name in full)
    raw = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(raw).hexdigest() == manifest.files[MODEL].sha256


def _read(link: Link, lineage: Place, *, base: Link | None) -> Delta:
    try:
        delta = read_delta(lineage / f"{link.version:08d}.delta", sha256=link.sha256)
    except BrokenCheckpointError as error:
        raise BrokenChainError(str(error), hole=link, base=base) from error
    manifest, parent = delta.header.manifest, delta.header.parent
    if (manifest.lineage, manifest.version) != (lineage.name, link.version) or not parent.version < link.version:
        reason = f"delta {link.version} in {lineage} says that it is {manifest.name} on top of {parent.version}"
        raise BrokenChainError(f"{reason}; wait for the next full checkpoint", hole=link, base=base)
    return delta
