"""The model that is live, from its announcement: read whole, or rebuilt from a full checkpoint and its deltas."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import structlog

from model.chain import rebuild
from model.checkpoint import BrokenCheckpointError, Manifest, ServingModel, full_versions, pin, read_serving
from model.delta import Link
from model.store import Place, place_of, read
from stream.events import ModelAnnouncement
from trainer.cut import Cut
from trainer.state import read_cut

_log = structlog.get_logger()


class Live(NamedTuple):
    """A model that serves, and which examples it has learnt."""

    serving: ServingModel
    cut: Cut


def read_live(announcement: ModelAnnouncement) -> Live:
    """The very weights that were announced.

    Raises:
        BrokenCheckpointError: a part is absent, altered or of another model.
    """
    path = place_of(announcement.path)
    if announcement.kind == "delta":
        rebuilt = rebuild(Link(announcement.version, announcement.manifest_sha256), path.parent)
        serving, cut = rebuilt.serving, msgspec.msgpack.decode(rebuilt.cut, type=Cut)
    else:
        serving, cut = read_serving(path, sha256=announcement.manifest_sha256), read_cut(path)
    check_is(serving.manifest, announcement)
    return Live(serving, cut)


def read_version(root: Place, lineage: str, version: int) -> ServingModel:
    """A version that still stands in the folder, by its name: of a delta the file is taken for what it says it is.

    Raises:
        BrokenCheckpointError: it, or what it needs, is absent or altered; versions are pruned after a while.
    """
    folder = root / lineage
    if version in full_versions(folder):
        return read_serving(folder / f"{version:08d}")
    path = folder / f"{version:08d}.delta"
    try:
        sha256 = hashlib.sha256(read(path)).hexdigest()
    except OSError as error:
        raise BrokenCheckpointError(f"{lineage}/{version} is not in {root} any more; name a later version") from error
    return rebuild(Link(version, sha256), folder).serving


def check_is(manifest: Manifest, announcement: ModelAnnouncement) -> None:
    """Refuses files that are whole and of another version than the announced one.

    Raises:
        BrokenCheckpointError: they are.
    """
    if (manifest.lineage, manifest.version) != (announcement.lineage, announcement.version):
        raise BrokenCheckpointError(
            f"{announcement.path} holds {manifest.name} instead of {announcement.name}; announce what stands there"
        )


def keep(path: Place) -> None:
    """Pins a checkpoint that is promoted or served from; where that cannot be, it is said and goes on."""
    try:
        pin(path)
    except OSError as error:
        _log.error(
            "this checkpoint may be pruned while it is needed; create the file yourself",
            file=f"{path}.pinned",
            reason=str(error),
        )
