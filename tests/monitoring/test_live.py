"""A real Prometheus scrapes a real vattd under load: every query of every dashboard and console has an answer."""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.committed import Query, dashboards, panels_of, queries_of, rules, variables_of
from tests.monitoring.chromium import opened
from tests.monitoring.processes import Prometheus, eventually
from tests.monitoring.system import Loaded, loaded_vattd, watched_by_prometheus

pytestmark = [pytest.mark.monitoring, pytest.mark.timeout(400)]

# Until every kind of thing has happened: a request has waited, one was refused, memory was asked back.
DATA_WITHIN_S = 90.0
INTERVAL = "30s"  # of rates: long enough that something happens in it

each_dashboard = pytest.mark.parametrize("model", dashboards(), ids=lambda model: model["uid"])


@dataclass(frozen=True, slots=True)
class Live:
    loaded: Loaded
    prometheus: Prometheus

    def values(self, model: dict[str, Any], *, all_of_several: bool) -> dict[str, str]:
        """Of the variables, as Grafana fills them in."""
        one = {"instance": self.loaded.address, "tenant": "chat"}
        return {
            name: variable["allValue"] if variable["multi"] and all_of_several else one[name]
            for name, variable in variables_of(model).items()
        }


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("prometheus")
    with loaded_vattd() as loaded, watched_by_prometheus(directory, [loaded.address]) as prometheus:
        yield Live(loaded, prometheus)


def has_numbers(samples: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in samples)


def unanswered(live: Live, queries: list[Query], values: dict[str, str]) -> list[str]:
    return [str(query) for query in queries if not has_numbers(live.prometheus.query(query.filled(values, INTERVAL)))]


def eventually_none(look: Callable[[], list[str]]) -> None:
    """Tries until the list is empty; fails with the last one."""
    last: list[str] = []

    def is_empty() -> bool:
        last[:] = look()
        return not last

    try:
        eventually("", is_empty, DATA_WITHIN_S)
    except AssertionError:
        raise AssertionError("no data:\n" + "\n".join(last)) from None


@each_dashboard
@pytest.mark.parametrize("all_of_several", [True, False], ids=["all", "one"])
def test_every_query_has_an_answer(live: Live, model: dict[str, Any], all_of_several: bool) -> None:
    values = live.values(model, all_of_several=all_of_several)
    left = list(queries_of(model))

    def look() -> list[str]:
        left[:] = [query for query in left if unanswered(live, [query], values)]
        return [str(query) for query in left]

    eventually_none(look)


def test_queries_name_metrics_that_vattd_serves(live: Live) -> None:
    """Also those whose queries would be 0 without any: what may never have happened yet."""
    with urllib.request.urlopen(f"http://{live.loaded.address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    served = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        served |= {name + part for part in parts}
    exprs = [query.expr for model in dashboards() for query in queries_of(model)]
    exprs += [rule["expr"] for name in ("alerts.yml", "recording.yml") for rule in rules(name)]
    named = {name for expr in exprs for name in re.findall(r"\b(?:vattd|grpc_server|process)_\w+", expr)}
    assert named, "the expressions name nothing"
    assert named <= served | {"vattd_context_bytes"}, sorted(named - served)


@each_dashboard
def test_variables_have_values(live: Live, model: dict[str, Any]) -> None:
    for name, variable in variables_of(model).items():
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found is not None
        series = found[1].replace("$instance", ".+")

        def values(series: str = series, label: str = found[2]) -> list[str]:
            return list(live.prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": series})["data"])

        assert eventually(f"{name} has values", values, DATA_WITHIN_S)


def test_recording_rules_record(live: Live) -> None:
    eventually_none(
        lambda: [
            rule["record"] for rule in rules("recording.yml") if not has_numbers(live.prometheus.query(rule["record"]))
        ]
    )


def said_by_console(prometheus: Prometheus, uid: str) -> dict[str, str]:
    """What it could and could not draw, as it writes into its own page."""
    with opened(f"{prometheus.url}/consoles/{uid}.html?from=now-5m") as page:
        page.wait_until("'panels' in document.body.dataset")
        said: dict[str, str] = page.value("({...document.body.dataset})")
        assert not page.errors
        assert all(url.startswith((f"{prometheus.url}/", "data:")) for url in page.requests), page.requests
        return said


@each_dashboard
def test_a_console_draws_every_panel(live: Live, model: dict[str, Any]) -> None:
    """In a real browser."""

    def look() -> list[str]:
        said = said_by_console(live.prometheus, model["uid"])
        if said.get("panels") != str(len(panels_of(model))):
            return [f"not all panels were reached: {said}"]
        return [f"{key}: {said[key]}" for key in ("empty", "failed") if said[key]]

    eventually_none(look)


def test_a_console_says_what_it_cannot_draw(tmp_path: Path) -> None:
    with watched_by_prometheus(tmp_path, []) as prometheus:
        said = said_by_console(prometheus, "vattd-fleet")
    assert said["failed"] == ""
    assert "Pools leased" in said["empty"].split("; ")
    assert "vattd up" not in said["empty"].split("; "), "nothing that is up is 0"


def test_annotations_of_alerts_are_filled_in(tmp_path: Path) -> None:
    """For that each alert fires at once, whatever its expression is about: with every label that one may name."""
    labels = {"instance": "gpu1", "tenant": "chat", "call": "create", "code": "CUDA_ERROR_UNKNOWN"}
    expr = "vector(12345678.9)"
    for name, value in labels.items():
        expr = f'label_replace({expr}, "{name}", "{value}", "", "")'
    hurried = [{**rule, "expr": expr, "for": "0s"} for rule in rules("alerts.yml")]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "vattd", "rules": hurried}]}))
    with watched_by_prometheus(tmp_path, [], rules=[path]) as prometheus:

        def firing() -> list[dict[str, Any]] | None:
            found = prometheus.get("/api/v1/alerts")["data"]["alerts"]
            return found if len(found) == len(hurried) else None

        for alert in eventually("every alert fires", firing, DATA_WITHIN_S):
            for text in alert["annotations"].values():
                assert not re.search(r"<error|<no value>|\{\{|%!", text), text
