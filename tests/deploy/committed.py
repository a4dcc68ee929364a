"""The committed dashboards and alerts, as Grafana and Prometheus will read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
GRAFANA_DIR = DEPLOY / "grafana"
CONSOLE_DIR = DEPLOY / "prometheus" / "consoles"
RULES_DIR = DEPLOY / "prometheus" / "rules"
ALERT_CASES = DEPLOY / "prometheus" / "tests" / "alerts.yml"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel, as it stands in the file: with variables."""

    board: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}, {self.panel!r}: {self.expr}"

    def filled(self, values: Mapping[str, str], interval: str) -> str:
        """As Prometheus gets it."""
        expr = self.expr.replace("$__rate_interval", interval)
        for name, value in values.items():
            expr = expr.replace(f"${name}", value)
        if "$" in expr:
            raise AssertionError(f"{self}: a variable that nobody fills in")
        return expr


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(GRAFANA_DIR.glob("*.json"))]


def panels_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the titles of rows."""
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def queries_of(model: dict[str, Any]) -> Iterator[Query]:
    for panel in panels_of(model):
        for target in panel["targets"]:
            yield Query(model["uid"], panel["title"], target["expr"])


def variables_of(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that a reader chooses of what Prometheus has."""
    return {one["name"]: one for one in model["templating"]["list"] if one["type"] == "query"}


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES_DIR / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return rules("alerts.yml")
