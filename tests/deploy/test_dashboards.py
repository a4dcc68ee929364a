"""The committed dashboards: made by the code beside them, whole, and honest about what is saved."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest

from deploy.dashboards.catalogue import CONSOLE_DIR, GRAFANA_DIR, files
from deploy.dashboards.console import console_page
from tests.deploy.committed import dashboards, panels_of, queries_of, variables_of
from tests.typed import quoted_in, refusal

BASELINES = ["static_reservation", "paged16", "paged256"]

each_dashboard = pytest.mark.parametrize("model", dashboards(), ids=lambda model: model["uid"])


def test_what_is_committed_is_what_the_code_makes() -> None:
    made = files()
    there = {*GRAFANA_DIR.glob("*.json"), *CONSOLE_DIR.iterdir()}
    assert there == made.keys()
    stale = [path.name for path, text in made.items() if path.read_text() != text]
    assert not stale, "run `make dashboards`, and commit what it wrote"


def test_addresses_of_dashboards_never_change() -> None:
    assert [model["uid"] for model in dashboards()] == ["vattd-fleet", "vattd-gpu", "vattd-tenant"]


@each_dashboard
def test_every_query_is_promql(model: dict[str, Any]) -> None:
    for query in queries_of(model):
        promql_parser.parse(query.filled(dict.fromkeys(variables_of(model), "some.+thing"), "1m"))


@each_dashboard
def test_variables_match_as_they_are_chosen(model: dict[str, Any]) -> None:
    """Several values, or all, come as a pattern; one value comes as it is, and a pattern would match too much."""
    for name, variable in variables_of(model).items():
        right, wrong = ("=~", "=") if variable["multi"] else ("=", "=~")
        uses = [use for query in queries_of(model) for use in re.findall(rf'(=~?)"\${name}"', query.expr)]
        assert uses, f"nothing asks for {name}"
        assert wrong not in uses
        assert right in uses


@each_dashboard
def test_panels_lie_beside_each_other_without_a_gap(model: dict[str, Any]) -> None:
    covered: dict[tuple[int, int], str] = {}
    for panel in model["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in covered, f"{panel['title']} lies upon {covered[x, y]}"
                covered[x, y] = panel["title"]
    height = 1 + max(y for _, y in covered)
    for y in range(height):
        assert (0, y) in covered, f"nothing stands in line {y}"


@each_dashboard
def test_every_panel_says_what_it_means(model: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels_of(model)]
    assert len(titles) == len(set(titles))
    for panel in panels_of(model):
        assert len(panel["description"]) > 20, panel["title"]
        assert [refusal(command) for command in quoted_in(panel["description"]) if refusal(command)] == []
        units = [panel["fieldConfig"]["defaults"].get("unit")]
        overrides = [one for override in panel["fieldConfig"]["overrides"] for one in override["properties"]]
        units += [one["value"] for one in overrides if one["id"] == "unit"]
        assert any(units), f"{panel['title']} has no unit"


@each_dashboard
def test_links_lead_to_dashboards_and_variables_that_exist(model: dict[str, Any]) -> None:
    known = {other["uid"]: variables_of(other) for other in dashboards()}
    urls = re.findall(r'"url": "([^"]+)"', json.dumps(model))
    for uid, variable in (re.fullmatch(r"/d/([\w-]+)\?var-(\w+)=.*", url).groups() for url in urls):  # type: ignore[union-attr]
        assert variable in known[uid]
    assert model["links"][0]["tags"] == model["tags"]
    assert not model["links"][0]["includeVars"], "all of one dashboard's GPUs are no value of another's"


@each_dashboard
def test_baselines_are_never_added_up(model: dict[str, Any]) -> None:
    for panel in panels_of(model):
        text = " ".join(target["expr"] for target in panel["targets"])
        uses = re.findall(r"vattd_tenant_(?:saved|baseline)_bytes\{([^}]*)\}", text)
        assert len(uses) == len(re.findall(r"vattd_tenant_(?:saved|baseline)_bytes", text))
        named = [re.findall(r'baseline="(\w+)"', use) for use in uses]
        assert all(len(names) == 1 for names in named), f"{panel['title']} adds baselines up"
        if named:
            [baseline] = {names[0] for names in named}
            assert baseline in panel["title"]


@pytest.mark.parametrize("uid", ["vattd-fleet", "vattd-tenant"])
def test_what_is_saved_is_shown_against_every_baseline(uid: str) -> None:
    [model] = [one for one in dashboards() if one["uid"] == uid]
    shown = [name for name in BASELINES for panel in panels_of(model) if name in panel["title"]]
    assert shown == BASELINES


@each_dashboard
def test_a_console_has_the_panels_of_its_dashboard(model: dict[str, Any]) -> None:
    page = (CONSOLE_DIR / f"{model['uid']}.html").read_text()
    found = re.search(r'<script type="application/json" id="dashboard">(.*?)</script>', page)
    assert found is not None
    assert json.loads(found[1])["panels"] == model["panels"]


@each_dashboard
def test_prometheus_expands_nothing_in_a_console_but_its_prefix(model: dict[str, Any]) -> None:
    """Legends have double braces, as Go's templates do."""
    page = (CONSOLE_DIR / f"{model['uid']}.html").read_text()
    assert re.findall(r"\{\{.*?\}\}", page) == ["{{ pathPrefix }}"]
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", page), "a console fetches nothing from elsewhere"


def test_a_title_cannot_end_the_script_that_it_stands_in() -> None:
    model = dashboards()[0] | {"title": "a </script> {{ b }}"}
    page = console_page(model, [])
    assert "</script> {{ b }}" not in page.split("<body>")[1]
