"""The alerts that we ship fire when they shall, by Prometheus' own tool, and name what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "observe" / "alerts.yml"
TESTS = Path(__file__).with_name("alerts.test.yml")
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()

with_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: it is in the Debian package prometheus"
)


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, check=False, capture_output=True, text=True)  # noqa: S607 - promtool is on PATH


@with_promtool
def test_prometheus_takes_the_rules() -> None:
    checked = promtool("check", "rules", RULES.name, cwd=RULES.parent)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@with_promtool
def test_alerts_fire_when_they_shall_and_not_otherwise(tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)

    tested = promtool("test", "rules", TESTS.name, cwd=tmp_path)

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_of_the_alerts_and_of_their_tests_is_documented() -> None:
    named = set(re.findall(r"\bsasrec_[a-z0-9_]+", RULES.read_text() + TESTS.read_text()))

    assert named
    assert {name for name in named if f"`{name}`" not in METRICS_PAGE} == set()


def test_every_alert_is_documented_and_tested() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())

    assert len(alerts) == len(set(alerts)) > 0
    assert [alert for alert in alerts if f"`{alert}`" not in METRICS_PAGE] == []
    assert [alert for alert in alerts if alert not in TESTS.read_text()] == []
