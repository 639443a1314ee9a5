"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("stream", "model", "trainer", "deploy")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607 - git is on PATH
    if listed.returncode:
        pytest.skip("this is no git checkout: nothing says which files belong to the project")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_package_names(package: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(package, []))

    assert owners <= {"sasrec-stream"}


@pytest.mark.parametrize("package", PACKAGES)
def test_an_init_file_holds_one_docstring_and_nothing_else(package: str) -> None:
    for init in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(init.read_text()).body
        assert len(body) == 1, init
        assert isinstance(body[0], ast.Expr), init


def test_the_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_pins_are_names_and_versions_only() -> None:
    pin = re.compile(r"^[A-Za-z0-9._\[\]-]+==[^\s;]+( ; .+)?$")

    for file in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert all(pin.match(line) for line in lines), file


def test_no_file_names_a_package_registry() -> None:
    registries = re.compile("|".join((r"pypi\.org", r"pythonhosted\.org", r"repo1?\.maven", r"download\.pytorch\.org")))

    texts = [file for file in tracked_files() if file.suffix in {".py", ".toml", ".txt", ".md", ".json", ".xml", ""}]
    named = [file for file in texts if file != Path(__file__) and registries.search(file.read_text(errors="ignore"))]
    assert not named


def test_pickle_is_never_imported() -> None:
    importing = re.compile(r"^\s*(import|from) (pickle|cPickle|dill|joblib|shelve)\b", re.MULTILINE)

    sources = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    assert not [file for file in sources if importing.search(file.read_text())]
