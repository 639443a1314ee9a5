"""What a user can turn, read or watch stands in the documentation, and what stands there exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.settings import Settings
from stream.topics import TOPICS

ROOT = Path(__file__).parents[2]
PACKAGES = ("stream", "model", "trainer", "deploy")
README = (ROOT / "README.md").read_text()
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()


def every_setting() -> list[str]:
    sections = Settings.model_fields.items()
    return [f"{name}.{key}" for name, field in sections for key in field.default.__class__.model_fields]


def every_metric() -> list[str]:
    """As Prometheus shows them: the client appends `_total` to a counter's name."""
    sources = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    defined = re.compile(r'(Counter|Gauge|Histogram|Summary)\(\s*"(sasrec_[a-z0-9_]+)"')
    found = {match.groups() for file in sources for match in defined.finditer(file.read_text())}
    return sorted(name.removesuffix("_total") + "_total" if kind == "Counter" else name for kind, name in found)


def every_path_of_the_annotated_tree() -> list[str]:
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", README, re.DOTALL)
    assert tree is not None, "README.md holds the annotated tree behind <!-- tree -->"
    folder, paths = "", []
    for line in tree[1].splitlines():
        first = re.match(r"([\w./]+/)(?:\s|$)", line)
        folder = first[1] if first else folder
        named = re.match(r"  ([\w./]+(?:, [\w./]+)*)\s{2,}", line)
        paths += [folder] if first else []
        paths += [folder + name for name in named[1].split(", ")] if named else []
    return paths


@pytest.mark.parametrize("key", every_setting())
def test_every_setting_stands_in_the_readme(key: str) -> None:
    assert f"`{key}`" in README


@pytest.mark.parametrize("name", [topic for topic in TOPICS if not topic.endswith(".dlq")])
def test_every_topic_stands_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", every_metric())
def test_every_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in METRICS_PAGE


def test_every_documented_metric_exists() -> None:
    documented = set(re.findall(r"`(sasrec_[a-z0-9_]+)`", METRICS_PAGE))

    assert documented == set(every_metric())


def test_the_annotated_tree_names_what_exists_and_every_file_that_does() -> None:
    named = set(every_path_of_the_annotated_tree())
    files = {file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}

    missing = {path for path in named if not (ROOT / path).exists()}
    unnamed = {file for file in files if not file.endswith("__init__.py")} - named
    assert not missing, f"README.md names what does not exist: {missing}"
    assert not unnamed, f"README.md leaves out: {unnamed}"
