"""A local folder and a real S3 server keep the same promises: whole or absent, and of two writers one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model import store
from model.checkpoint import (
    MANIFEST,
    MODEL,
    TRAINER,
    BrokenCheckpointError,
    Manifest,
    newest_checkpoint,
    pin,
    pinned_versions,
    prune,
    read_document,
    read_manifest,
    verify,
    version_path,
    write_files,
)
from model.store import Place, RemotePlace, create, names, place_of, read, remove, replace


@pytest.fixture(params=["folder", "S3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return tmp_path / "store" if request.param == "folder" else place_of(request.getfixturevalue("s3_url"))


def test_what_was_written_is_read_and_listed(root: Place) -> None:
    create(root / "a" / "one", b"1")
    create(root / "a" / "two", b"2" * 1_000_000)
    create(root / "b" / "c" / "three", b"")

    assert read(root / "a" / "one") == b"1"
    assert len(read(root / "a" / "two")) == 1_000_000
    assert (names(root), names(root / "a"), names(root / "b"), names(root / "nobody")) == (
        ["a", "b"],
        ["one", "two"],
        ["c"],
        [],
    )


def test_a_place_knows_its_name_and_the_folder_it_is_in(root: Place) -> None:
    place = root / "lineage" / "00000001"

    assert place.name == "00000001"
    assert place.parent == root / "lineage"
    assert place_of(store.absolute(place)) == place


def test_a_file_is_created_once(root: Place) -> None:
    create(root / "claim", b"mine")

    with pytest.raises(FileExistsError):
        create(root / "claim", b"yours")

    assert read(root / "claim") == b"mine"
    assert names(root) == ["claim"]


def test_of_many_who_create_one_file_exactly_one_does(root: Place) -> None:
    def claim(number: int) -> bool:
        try:
            create(root / "claim", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim, range(8)))

    assert claimed.count(True) == 1
    assert read(root / "claim") == b"%d" % claimed.index(True)


def test_a_file_is_replaced_as_a_whole(root: Place) -> None:
    create(root / "claim", b"first")
    replace(root / "claim", b"second")

    assert read(root / "claim") == b"second"
    assert names(root) == ["claim"]


def test_what_is_removed_is_gone_and_what_is_gone_may_be_removed(root: Place) -> None:
    create(root / "folder" / "file", b"1")
    create(root / "folder" / "deep" / "file", b"1")
    create(root / "file", b"1")

    for name in ("folder", "file", "nobody"):
        remove(root / name)

    assert names(root) == []
    with pytest.raises(FileNotFoundError):
        read(root / "file")


def manifest(version: int) -> Manifest:
    return Manifest(lineage="main", version=version, created_at_ms=1, model={}, examples_trained=version)


def test_a_checkpoint_is_read_as_it_was_written(root: Place) -> None:
    written = write_files(root, manifest(3), {MODEL: b"weights", TRAINER: b"offsets"})

    found = newest_checkpoint(root / "main", on_broken=refuse)

    assert found == written
    assert written.path == version_path(root, "main", 3)
    assert read_document(written.path, read_manifest(written.path, sha256=written.manifest_sha256), MODEL) == b"weights"
    with pytest.raises(FileExistsError, match="higher version"):
        write_files(root, manifest(3), {MODEL: b"others"})


def test_a_remote_version_whose_manifest_was_never_put_is_absent(s3_url: str) -> None:
    root = place_of(s3_url)
    whole = write_files(root, manifest(1), {MODEL: b"weights"})
    create(version_path(root, "main", 2) / MODEL, b"its trainer was killed before the manifest")

    assert newest_checkpoint(root / "main", on_broken=refuse) == whole


def test_a_harmed_file_is_noticed(root: Place) -> None:
    written = write_files(root, manifest(1), {MODEL: b"weights", TRAINER: b"offsets"})
    replace(written.path / MODEL, b"weightz")

    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors was altered"):
        verify(written.path, sha256=written.manifest_sha256)
    remove(written.path / MODEL)
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors cannot be read"):
        verify(written.path)


def test_old_versions_and_deltas_are_pruned_and_some_are_spared(root: Place) -> None:
    for version in range(1, 7):
        write_files(root, manifest(version), {MODEL: b"weights"})
        create(root / "main" / f"{version:08d}.delta", b"changes")

    assert prune(root / "main", keep=2, spare={1}) == [2, 3, 4]

    assert names(root / "main") == ["00000001", "00000005", "00000006", "00000006.delta"]
    assert names(root / "main" / "00000006") == [MANIFEST, MODEL]


def test_a_pinned_version_stays_until_its_pin_is_removed(root: Place) -> None:
    for version in range(1, 7):
        write_files(root, manifest(version), {MODEL: b"weights"})
    for _ in range(2):
        pin(version_path(root, "main", 2))

    pruned = prune(root / "main", keep=2)
    remove(root / "main" / "00000002.pinned")

    assert pruned == [1, 3, 4]
    assert pinned_versions(root / "main") == frozenset()
    assert prune(root / "main", keep=2) == [2]
    assert names(root / "main") == ["00000005", "00000006"]


def test_a_folder_that_is_no_version_is_not_pinned(root: Place) -> None:
    create(root / "models" / "copy" / MANIFEST, b"{}")

    pin(root / "models" / "copy")

    assert names(root / "models") == ["copy"]


def test_a_store_that_nobody_knows_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="name a folder"):
        place_of("nowhere://bucket")


def test_a_store_that_does_not_answer_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """Fails as no store of ours does."""

        def cat_file(self, url: str) -> bytes:
            raise RuntimeError("no answer")

    monkeypatch.setattr(store, "_store", lambda place: Silent())

    with pytest.raises(OSError, match="no answer"):
        read(RemotePlace("s3://bucket/file"))


def test_where_no_hard_links_are_made_a_file_is_still_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    create(tmp_path / "claim", b"mine")

    with pytest.raises(FileExistsError):
        create(tmp_path / "claim", b"yours")

    assert (names(tmp_path), read(tmp_path / "claim")) == (["claim"], b"mine")


def refuse(error: BrokenCheckpointError) -> None:
    raise error
