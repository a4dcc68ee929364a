"""The committed alerts: each says what to type, is tested both ways, and stands in the runbook."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.deploy.committed import ALERT_CASES, DEPLOY, alerts, rules
from tests.typed import quoted_in, refusal

RUNBOOK = DEPLOY.parent / "docs" / "monitoring.md"

each_alert = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])


@each_alert
def test_an_alert_says_what_is_wrong_and_what_to_type(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    typed = list(quoted_in(alert["annotations"]["runbook"]))
    assert typed, "it names no command"
    assert {command: refusal(command) for command in typed if refusal(command)} == {}


@each_alert
def test_an_alert_is_seen_firing_and_resolving_and_silent(alert: dict[str, Any]) -> None:
    """By promtool, in `make test-monitoring`; here, that it is asked to."""
    name = alert["alert"]
    fired_and_resolved = silent = False
    for case in yaml.safe_load(ALERT_CASES.read_text())["tests"]:
        checks = [check for check in case["promql_expr_test"] if f'alertname="{name}"' in check["expr"]]
        fires = [bool(check["exp_samples"]) for check in sorted(checks, key=lambda check: int(check["eval_time"][:-1]))]
        silent |= bool(fires) and not any(fires)
        fired_and_resolved |= any(fires) and not fires[0] and not fires[-1]
    assert fired_and_resolved
    assert silent


@each_alert
def test_an_alert_has_its_place_in_the_runbook(alert: dict[str, Any]) -> None:
    assert f"\n### {alert['alert']}\n" in RUNBOOK.read_text()


def test_the_runbook_tells_to_type_what_there_is() -> None:
    assert {one: refusal(one) for one in quoted_in(RUNBOOK.read_text()) if refusal(one)} == {}


def test_recording_rules_are_named_for_their_level_metric_and_operation() -> None:
    for rule in rules("recording.yml"):
        assert re.fullmatch(r"[a-z_]+:vattd_\w+:\w+", rule["record"])
        assert "baseline" not in rule["expr"] or re.search(r"by \([^)]*baseline", rule["expr"])
