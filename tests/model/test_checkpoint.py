"""A checkpoint is whole or absent (I4): whatever happens to its files, nobody reads half of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.catalogue import Catalogue
from model.checkpoint import (
    CATALOGUE,
    MANIFEST,
    MODEL,
    TRAINER,
    TRAINER_TENSORS,
    BrokenCheckpointError,
    Manifest,
    WrittenCheckpoint,
    newest_checkpoint,
    prune,
    read_document,
    read_manifest,
    read_serving,
    read_tensors,
    verify,
    version_path,
    write_checkpoint,
)
from model.sasrec import SASRec
from model.settings import ModelSettings

SETTINGS = ModelSettings(max_length=4, units=4, blocks=1)
FILES = [MODEL, CATALOGUE, TRAINER_TENSORS, TRAINER, MANIFEST]
every_file = pytest.mark.parametrize("name", FILES)


def catalogue_of(items: int) -> Catalogue:
    catalogue = Catalogue(max_items=100, half_life_clicks=10.0)
    for index in range(items):
        catalogue.admit(f"item {index}")
    catalogue.take_fresh_rows()
    return catalogue


def network(rows: int) -> SASRec:
    model = SASRec(SETTINGS, capacity=1_024, generator=torch.Generator().manual_seed(1))
    model.reset_rows(np.arange(1, rows), np.random.default_rng(1))
    return model


def write(root: Path, version: int = 1, *, items: int = 5, rows: int = 6, lineage: str = "main") -> WrittenCheckpoint:
    manifest = Manifest(
        lineage=lineage,
        version=version,
        created_at_ms=1_700_000_000_000 + version,
        model=SETTINGS.model_dump(),
        examples_trained=10 * version,
        trained_through_ms=1_600_000_000_000,
    )
    return write_checkpoint(
        root,
        manifest,
        tensors={MODEL: network(rows).tensors(rows=rows), TRAINER_TENSORS: {"moment": torch.ones(3)}},
        documents={CATALOGUE: catalogue_of(items).to_document(), TRAINER: b"offsets"},
    )


def folder_of(written: WrittenCheckpoint) -> Path:
    assert isinstance(written.path, Path)
    return written.path


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def lose(path: Path) -> None:
    path.unlink()


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


every_harm = pytest.mark.parametrize("harm", [truncate, flip_a_bit, lose, replace_by_a_folder])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write(tmp_path, version=12)

    manifest = read_manifest(written.path, sha256=written.manifest_sha256)
    serving = read_serving(written.path, sha256=written.manifest_sha256)

    assert written.path == tmp_path / "main" / "00000012" == version_path(tmp_path, "main", 12)
    assert manifest == written.manifest == serving.manifest
    assert manifest.settings == SETTINGS
    assert (manifest.examples_trained, manifest.trained_through_arrival_ms) == (120, None)
    assert set(manifest.files) == {*FILES} - {MANIFEST}
    assert read_document(written.path, manifest, TRAINER) == b"offsets"
    assert torch.equal(read_tensors(written.path, manifest, TRAINER_TENSORS)["moment"], torch.ones(3))


def test_a_serving_model_predicts_what_the_trained_one_does(tmp_path: Path) -> None:
    rows = torch.tensor([[0, 1, 2, 3]])

    serving = read_serving(write(tmp_path).path)

    assert torch.equal(serving.model.encode_last(rows), network(6).encode_last(rows))
    assert serving.model.capacity == serving.catalogue.size == 6
    assert not any(weight.requires_grad for weight in serving.model.parameters())


@every_harm
@every_file
def test_a_harmed_checkpoint_is_refused_with_the_file_that_is_broken(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    written = write(tmp_path)

    harm(folder_of(written) / name)

    with pytest.raises(BrokenCheckpointError, match=f"{name}.*another checkpoint"):
        verify(written.path, sha256=written.manifest_sha256)


@every_file
def test_the_newest_whole_checkpoint_is_found_and_broken_ones_are_reported(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path, version=9)
    truncate(folder_of(write(tmp_path, version=10)) / name)
    lose(folder_of(write(tmp_path, version=11)) / name)
    reported: list[BrokenCheckpointError] = []

    found = newest_checkpoint(tmp_path / "main", on_broken=reported.append)

    assert found == whole
    assert [str(number) in str(error) for number, error in zip((11, 10), reported, strict=True)] == [True, True]


def test_without_a_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    reported: list[BrokenCheckpointError] = []
    assert newest_checkpoint(tmp_path / "nobody", on_broken=reported.append) is None

    lose(folder_of(write(tmp_path)) / MODEL)

    assert newest_checkpoint(tmp_path / "main", on_broken=reported.append) is None
    assert len(reported) == 1


class PowerCutError(Exception):
    """The machine stops."""


@pytest.mark.parametrize("survived", range(8))
def test_a_crash_before_the_rename_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """The power is cut after so many fsyncs; five files, their folder, then the rename and the lineage's folder."""
    whole = write(tmp_path, version=1)
    syncs = iter(range(survived))
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if next(syncs, None) is None:
            raise PowerCutError
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        cut_off = survived < 7
        if cut_off:
            with pytest.raises(PowerCutError):
                write(tmp_path, version=2)
        else:
            write(tmp_path, version=2)

    reported: list[BrokenCheckpointError] = []
    found = newest_checkpoint(tmp_path / "main", on_broken=reported.append)
    assert not reported
    assert found is not None
    assert found.manifest.version == (1 if survived < 6 else 2)
    assert verify(whole.path) == whole
    prune(tmp_path / "main", keep=5)
    assert [path.name for path in (tmp_path / "main").iterdir() if path.name.startswith(".")] == []


def test_a_version_is_written_once(tmp_path: Path) -> None:
    written = write(tmp_path)

    with pytest.raises(FileExistsError, match="higher version"):
        write(tmp_path, items=1, rows=2)

    assert verify(written.path) == written


def test_another_manifest_than_the_announced_one_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, lineage="a")
    other = write(tmp_path, lineage="b")

    with pytest.raises(BrokenCheckpointError, match="announced"):
        read_serving(written.path, sha256=other.manifest_sha256)


def rewrite_manifest(path: Path, **changes: object) -> None:
    stated = msgspec.json.decode((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(msgspec.json.encode(stated | changes))


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    written = write(tmp_path)
    rewrite_manifest(folder_of(written), format=2, files="of another kind")

    with pytest.raises(BrokenCheckpointError, match=r"format 2.*upgrade sasrec-stream"):
        read_serving(written.path)


def test_unknown_fields_and_extra_files_are_ignored(tmp_path: Path) -> None:
    written = write(tmp_path)
    rewrite_manifest(folder_of(written), mood="good")
    (folder_of(written) / "notes.txt").write_text("mine")

    assert read_serving(written.path).manifest == written.manifest


@pytest.mark.parametrize("version", [0, -1, "one"])
def test_a_manifest_out_of_bounds_is_refused(tmp_path: Path, version: object) -> None:
    written = write(tmp_path)
    rewrite_manifest(folder_of(written), version=version)

    with pytest.raises(BrokenCheckpointError, match="cannot be read"):
        read_manifest(written.path)


def test_a_shape_that_no_model_can_have_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path)
    rewrite_manifest(folder_of(written), model={"units": 7, "heads": 2})

    with pytest.raises(BrokenCheckpointError, match="not a multiple of heads"):
        read_serving(written.path)


def test_weights_of_another_shape_than_stated_are_refused(tmp_path: Path) -> None:
    written = write(tmp_path)
    rewrite_manifest(folder_of(written), model=SETTINGS.model_dump() | {"blocks": 2})

    with pytest.raises(BrokenCheckpointError, match="do not fit"):
        read_serving(written.path)


def test_a_table_of_another_size_than_the_catalogue_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, items=3, rows=6)

    with pytest.raises(BrokenCheckpointError, match="differ in size"):
        read_serving(written.path)


def test_a_file_that_the_manifest_does_not_name_is_absent(tmp_path: Path) -> None:
    written = write(tmp_path)

    with pytest.raises(BrokenCheckpointError, match=r"has no other\.msgpack"):
        read_document(written.path, written.manifest, "other.msgpack")


def test_only_old_checkpoints_are_pruned_and_some_are_spared(tmp_path: Path) -> None:
    for version in range(1, 8):
        write(tmp_path, version=version)
    (tmp_path / "main" / "README").write_text("not a checkpoint")

    removed = prune(tmp_path / "main", keep=2, spare={3})

    assert removed == [1, 2, 4, 5]
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == ["00000003", "00000006", "00000007", "README"]
    assert prune(tmp_path / "main", keep=2, spare={3}) == []


def test_pruning_nothing_is_no_error(tmp_path: Path) -> None:
    assert prune(tmp_path / "nobody", keep=2) == []


@settings(max_examples=30, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(FILES))
def test_no_flipped_bit_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, name: str
) -> None:
    written = write(tmp_path_factory.mktemp("flipped"))
    raw = bytearray((folder_of(written) / name).read_bytes())
    raw[int(position * len(raw))] ^= 1 << bit
    (folder_of(written) / name).write_bytes(raw)

    with pytest.raises(BrokenCheckpointError):
        verify(written.path, sha256=written.manifest_sha256)
