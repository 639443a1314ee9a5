"""The kernels are compiled once, and nothing fails where they cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.native import build

FAKE_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo fake 1.0; exit; fi
echo compiled >> "{log}"
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""
ASK = "from model.native.build import library; print(library())"


@pytest.fixture
def compiler(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "c++"
    script.write_text(FAKE_COMPILER.format(log=tmp_path / "log"))
    script.chmod(0o755)
    return (str(script),)


def asked(**variables: str) -> str:
    """What a new process says of its library."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **variables}, check=True, capture_output=True, text=True
    )
    assert not done.stderr
    return done.stdout.strip()


def test_what_is_compiled_is_found_again(compiler: tuple[str, ...], tmp_path: Path) -> None:
    first, second = (build.compiled(compiler, tmp_path / "cache") for _ in range(2))

    assert first == second
    assert (tmp_path / "log").read_text() == "compiled\n"


def test_whoever_starts_at_once_finds_a_whole_library(compiler: tuple[str, ...], tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: build.compiled(compiler, tmp_path / "cache"), range(8)))

    assert {file.read_text() for file in files} == {"library\n"}
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [files[0].name]


def test_other_flags_or_another_compiler_make_another_library(
    compiler: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build.compiled(compiler, tmp_path)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))

    assert build.compiled(compiler, tmp_path) != before


@pytest.mark.parametrize(
    "variables",
    [
        {"SASREC_NATIVE": "off"},
        {"CXX": "no-such-compiler"},
        {"CXX": "false"},
        {"PATH": "/nowhere", "CXX": ""},
        {"XDG_CACHE_HOME": "/dev/null"},
    ],
    ids=str,
)
def test_without_a_compiler_or_a_cache_torch_computes_and_nothing_is_said(variables: dict[str, str]) -> None:
    assert asked(**variables) == "None"


def test_a_library_that_cannot_be_loaded_is_as_good_as_none(compiler: tuple[str, ...], tmp_path: Path) -> None:
    assert asked(CXX=compiler[0], XDG_CACHE_HOME=str(tmp_path)) == "None"
