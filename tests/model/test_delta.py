"""A chain of deltas leads to the very weights it was made from, and nothing that was harmed is ever applied."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.catalogue import Catalogue
from model.checkpoint import BrokenCheckpointError, Manifest, ServingModel
from model.delta import MAGIC, Link, apply_delta, changes_of, delta_path, encode_delta, read_delta, write_delta
from model.sasrec import SASRec
from model.settings import ModelSettings

SETTINGS = ModelSettings(max_length=4, units=4, blocks=1)
BASE = Link(1, "0" * 64)


def manifest(version: int, settings: ModelSettings = SETTINGS) -> Manifest:
    return Manifest(
        lineage="main", version=version, created_at_ms=1, model=settings.model_dump(), examples_trained=10 * version
    )


def model_of(items: int, *, max_items: int = 100) -> ServingModel:
    catalogue = Catalogue(max_items=max_items, half_life_clicks=10.0)
    network = SASRec(SETTINGS, capacity=catalogue.capacity, generator=torch.Generator().manual_seed(1))
    model = ServingModel(network.requires_grad_(requires_grad=False), catalogue, manifest(1))
    admit(model, [f"item {index}" for index in range(items)])
    return model


def admit(model: ServingModel, items: list[str], seed: int = 1) -> np.ndarray:
    rows = np.array([model.catalogue.admit(item) for item in items], dtype=np.int64)
    model.model.grow(model.catalogue.capacity)
    model.model.requires_grad_(requires_grad=False)
    fresh = model.catalogue.take_fresh_rows()
    model.model.reset_rows(fresh, np.random.default_rng(seed))
    model.catalogue.count_clicks(rows)
    return fresh


def encoded(model: ServingModel, rows: np.ndarray, mark: int, *, version: int = 2, parent: Link = BASE) -> bytes:
    changes = changes_of(
        model.model,
        torch.from_numpy(rows),
        rows=model.catalogue.size,
        catalogue=model.catalogue.changes_since(mark),
        cut=b"offsets",
    )
    return encode_delta(manifest(version), changes, parent=parent, base=BASE)


def assert_same(left: ServingModel, right: ServingModel) -> None:
    rows = left.catalogue.size
    ours, theirs = left.model.tensors(rows=rows), right.model.tensors(rows=rows)
    assert left.catalogue.same_as(right.catalogue)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name


def sent(tmp_path: Path, raw: bytes, version: int = 2) -> tuple[Path, str]:
    link = write_delta(tmp_path, raw, lineage="main", version=version)
    path = delta_path(tmp_path, "main", version)
    assert isinstance(path, Path)
    return path, link.sha256


def test_a_delta_says_what_it_is(tmp_path: Path) -> None:
    live = model_of(3)
    path, sha256 = sent(tmp_path, encoded(live, np.array([2]), live.catalogue.mark()))

    delta = read_delta(path, sha256=sha256)

    assert path == tmp_path / "main" / "00000002.delta"
    assert (delta.version, delta.header.parent, delta.header.base) == (2, BASE, BASE)
    assert (delta.rows_U.tolist(), delta.cut) == ([2], b"offsets")
    assert delta.header.manifest.examples_trained == 20


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2_000), max_size=30),  # items clicked, known or new
        st.integers(0, 2**16),  # the seed of what is learnt
    ),
    min_size=1,
    max_size=8,
)


@given(steps=steps, max_items=st.sampled_from([5, 60, 2_000]), bulk=st.sampled_from([0, 1_500]))
def test_whatever_is_learnt_admitted_and_evicted_the_rebuilt_model_is_the_same_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[int], int]], max_items: int, bulk: int
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    live = model_of(3, max_items=max_items)
    reader = ServingModel(copy.deepcopy(live.model), Catalogue.from_document(live.catalogue.to_document()), manifest(1))
    mark, parent = live.catalogue.mark(), BASE

    for version, (clicked, seed) in enumerate(steps, start=2):
        items = [f"item {index}" for index in clicked]
        items += [f"bulk {index}" for index in range(bulk)] if version == 3 else []
        fresh = admit(live, items, seed)
        touched = np.unique(np.concatenate([fresh, live.catalogue.rows_of(items)]))
        touched = touched[touched != 0]
        rng = np.random.default_rng(seed)
        live.model.item_RD[torch.from_numpy(touched)] = torch.from_numpy(
            rng.standard_normal((len(touched), SETTINGS.units), dtype=np.float32)
        )
        for weight in live.model.blocks.parameters():
            weight.add_(float(rng.standard_normal()))
        raw = encoded(live, touched, mark, version=version, parent=parent)
        mark = live.catalogue.mark()
        path, sha256 = sent(folder, raw, version)
        parent = Link(version, sha256)
        reader = apply_delta(reader, read_delta(path, sha256=sha256))

        assert_same(live, reader)
    assert reader.manifest == manifest(len(steps) + 1)


@pytest.mark.parametrize("harm", ["torn", "bit", "missing", "folder", "another"])
def test_a_harmed_delta_is_refused(tmp_path: Path, harm: str) -> None:
    live = model_of(3)
    path, sha256 = sent(tmp_path, encoded(live, np.array([2]), live.catalogue.mark()))
    raw = bytearray(path.read_bytes())
    path.unlink()
    raw[len(raw) // 2] ^= harm == "bit"
    if harm == "folder":
        path.mkdir()
    elif harm == "another":
        path.write_bytes(encoded(live, np.array([1]), live.catalogue.mark()))
    elif harm != "missing":
        path.write_bytes(raw[: len(raw) // 2] if harm == "torn" else raw)

    with pytest.raises(BrokenCheckpointError, match=r"00000002\.delta.*wait for the next full checkpoint"):
        read_delta(path, sha256=sha256)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, position: float, bit: int) -> None:
    live = model_of(3)
    path, sha256 = sent(tmp_path_factory.mktemp("flipped"), encoded(live, np.array([2]), live.catalogue.mark()))
    raw = bytearray(path.read_bytes())
    raw[int(position * len(raw))] ^= 1 << bit
    path.write_bytes(raw)

    with pytest.raises(BrokenCheckpointError):
        read_delta(path, sha256=sha256)


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", MAGIC, MAGIC + b"\xff\xff\xff\xff{}", MAGIC + b"\x02\0\0\0{}"])
def test_what_was_announced_and_is_no_delta_is_refused(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "00000002.delta"
    path.write_bytes(rubbish)

    with pytest.raises(BrokenCheckpointError):
        read_delta(path, sha256=hashlib.sha256(rubbish).hexdigest())


def test_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    live = model_of(3)
    raw = encoded(live, np.array([2]), live.catalogue.mark()).replace(b'"format":1,"files"', b'"format":1,"seals"')
    raw = raw[: raw.rindex(b'"format":1}')] + b'"format":9}' + raw[raw.rindex(b'"format":1}') + 11 :]
    path = tmp_path / "00000002.delta"
    path.write_bytes(raw)

    with pytest.raises(BrokenCheckpointError, match=r"format 9.*upgrade sasrec-stream"):
        read_delta(path, sha256=hashlib.sha256(raw).hexdigest())


def test_a_version_is_written_once(tmp_path: Path) -> None:
    live = model_of(3)
    path, sha256 = sent(tmp_path, encoded(live, np.array([2]), live.catalogue.mark()))

    with pytest.raises(FileExistsError):
        write_delta(tmp_path, b"another", lineage="main", version=2)

    assert read_delta(path, sha256=sha256).version == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["00000002.delta"]


def test_a_delta_of_another_shape_or_catalogue_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    live, reader, other = model_of(5), model_of(3), model_of(3)
    path, sha256 = sent(tmp_path, encoded(live, np.array([2]), live.catalogue.mark()))
    of_another_catalogue = read_delta(path, sha256=sha256)
    wider = ModelSettings(max_length=4, units=8, blocks=1)
    of_another_shape = of_another_catalogue._replace(
        header=msgspec.structs.replace(of_another_catalogue.header, manifest=manifest(2, wider))
    )

    for delta in (of_another_catalogue, of_another_shape):
        with pytest.raises(BrokenCheckpointError):
            apply_delta(reader, delta)

    assert_same(reader, other)
