"""docs/metrics.md says what the code says, and its queries can be typed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vattd.fake_driver import FakeDriver
from tests.vattd.test_metrics_reading import readings_of
from tests.vattd.test_pool import Bench, at_work
from vattd.metrics import families_of
from vattd.metrics_process import process_families

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(?P<name>\w+)(\{(?P<labels>[\w,]+)\})?` (?P<kind>\w+) \| (?P<text>.*) \| `(?P<query>.*)` \|")
# What Prometheus makes of a histogram.
SUFFIX = r"(_bucket|_sum|_count)?"


def rows() -> list[re.Match[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in lines]
    return [row for row, line in zip(found, lines, strict=True) if row is not None or pytest.fail(f"no row: {line}")]


def test_the_page_has_every_metric_as_it_is_exposed_and_no_other() -> None:
    exposed = []

    async def story(bench: Bench) -> None:
        reading = await readings_of(bench).read()
        for family in [*families_of(reading), *process_families()]:
            exposed.append((family.name, ",".join(family.labels), family.kind.value, family.text))

    at_work(FakeDriver(), story)
    assert [(row["name"], row["labels"] or "", row["kind"], row["text"]) for row in rows()] == exposed


def test_names_follow_prometheus_conventions() -> None:
    names = [row["name"] for row in rows()]
    assert len(names) == len(set(names))
    for row in rows():
        assert (row["kind"] == "counter") == row["name"].endswith("_total"), row["name"]
        assert set((row["labels"] or "").split(",")) <= {
            *("", "tenant", "state", "reason", "cause", "purpose", "call", "code", "kind", "baseline"),
            *("version", "backend", "uuid"),
            *("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
        }, row["name"]
        assert row["text"].endswith("."), row["name"]


def test_each_metric_has_a_query_that_uses_it_and_only_metrics_that_there_are() -> None:
    names = {row["name"] for row in rows()}
    for row in rows():
        used = set(re.findall(r"\b((?:vattd|grpc|process)_\w+?)(?=\W|$)", row["query"]))
        labels = {label for other in rows() for label in (other["labels"] or "").split(",")}
        bare = {re.sub(rf"{SUFFIX}$", "", name) if name not in names else name for name in used - labels}
        assert row["name"] in bare, row["query"]
        assert bare <= names, row["query"]


@pytest.mark.monitoring
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or pytest.fail("promtool is not installed: apt-get install prometheus")
    queries = [{"record": f"query:{number}", "expr": row["query"]} for number, row in enumerate(rows())]
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps({"groups": [{"name": "docs", "rules": queries}]}))  # JSON is YAML
    result = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(queries)} rules found" in result.stdout
