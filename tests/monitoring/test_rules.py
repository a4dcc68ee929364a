"""promtool and amtool on what is deployed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.monitoring.processes import program
from tests.monitoring.system import DEPLOYED

pytestmark = pytest.mark.monitoring


def check(tool: str, *arguments: str, cwd: Path = DEPLOYED) -> str:
    done = subprocess.run([program(tool), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_configurations_are_valid() -> None:
    check("promtool", "check", "config", "prometheus.yml")
    check("amtool", "check-config", "alertmanager.yml")


def test_every_alert_fires_and_resolves_and_is_silent_as_its_cases_say() -> None:
    check("promtool", "test", "rules", "tests/alerts.yml")


def test_recorded_ratios_and_sums_are_what_they_say() -> None:
    check("promtool", "test", "rules", "tests/recording.yml")


@pytest.mark.parametrize(
    ("said", "instead"),
    [("== 0\n        for: 1m", "== 0\n        for: 5m"), ("> 0.95", "> 0.99"), ("unless", "and"), ("0.1 *", "0.3 *")],
)
def test_the_cases_find_a_wrong_rule(tmp_path: Path, said: str, instead: str) -> None:
    rules = (DEPLOYED / "rules" / "alerts.yml").read_text()
    assert said in rules
    for folder in ("rules", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rules" / "alerts.yml").write_text(rules.replace(said, instead))
    (tmp_path / "tests" / "alerts.yml").write_text((DEPLOYED / "tests" / "alerts.yml").read_text())
    with pytest.raises(AssertionError, match="FAILED"):
        check("promtool", "test", "rules", "tests/alerts.yml", cwd=tmp_path)
