"""The four kinds of panels that the dashboards are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

# As Grafana names them; the consoles know these and no others.
Unit = Literal["short", "bytes", "binBps", "s", "percentunit", "ops"]

BLUE, GREEN, ORANGE, RED = "#4a7fd6", "#3f9e6a", "#dd8430", "#cf4a4a"
PURPLE, YELLOW, TEAL, GREY, PALE = "#8f6fc9", "#c4a11f", "#2f9fae", "#7d8896", "#b6bdc7"

Panel = Builder[dashboard.Panel]


@dataclass(frozen=True, slots=True)
class Line:
    """A query, and what its series are called: a word, or labels in double braces. A word may have a colour."""

    expr: str
    name: str
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A query with one value a row, under a title; `links_to` is a dashboard and the label that chooses there."""

    expr: str
    title: str
    unit: Unit = "short"


@dataclass(frozen=True, slots=True)
class Key:
    """The label that names a table's rows, and the dashboard that shows one of them."""

    label: str
    title: str
    dashboard_uid: str


def graph(
    title: str, text: str, *lines: Line, unit: Unit, stacked: bool = False, most: float | None = None
) -> timeseries.Panel:
    """Lines over time; stacked where their sum means something."""
    panel = timeseries.Panel().title(title).description(text).datasource(SOURCE).unit(unit)
    panel.targets([_query(line.expr, index).legend_format(line.name).range() for index, line in enumerate(lines)])
    panel.color_scheme(_palette()).line_width(1).fill_opacity(60 if stacked else 8)
    panel.show_points(common.VisibilityMode.NEVER).span_nulls(False)
    panel.legend(
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.min(0).max(most)
    for line in lines:
        if line.colour is not None:
            colour = {"mode": "fixed", "fixedColor": line.colour}
            panel.override_by_name(line.name, [dashboard.DynamicConfigValue(id_val="color", value=colour)])
    return panel


def figure(
    title: str,
    text: str,
    expr: str,
    *,
    unit: Unit = "short",
    steps: Sequence[tuple[float, str]] = (),
    words: Mapping[int, tuple[str, str]] | None = None,
) -> stat.Panel:
    """One number, large, over a small line of its past. From each of `steps` on it has another colour.

    `words` are what whole numbers are shown as, each with its colour.
    """
    panel = stat.Panel().title(title).description(text).datasource(SOURCE).unit(unit)
    panel.targets([_query(expr, 0).range()])
    limits = [dashboard.Threshold(value=None, color=BLUE)]
    limits += [dashboard.Threshold(value=value, color=colour) for value, colour in steps]
    panel.thresholds(
        dashboard_builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(limits),
    )
    panel.color_scheme(dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_mode(common.BigValueColorMode.VALUE).text_mode(common.BigValueTextMode.VALUE)
    panel.graph_mode(common.BigValueGraphMode.NONE if words else common.BigValueGraphMode.AREA)
    if words:
        shown = {
            str(value): dashboard.ValueMappingResult(text=word, color=colour, index=index)
            for index, (value, (word, colour)) in enumerate(words.items())
        }
        panel.mappings([dashboard.ValueMap(options=shown)])
    return panel


def rows(title: str, text: str, key: Key, *columns: Column, hidden: Sequence[str] = ()) -> table.Panel:
    """A row for each value of the key's label, joined from one query a column. The first query may have more labels,
    which become columns as well, but for those that are hidden."""
    panel = table.Panel().title(title).description(text).datasource(SOURCE)
    queries = [_query(column.expr, index) for index, column in enumerate(columns)]
    panel.targets([query.instant().format(PromQueryFormat.TABLE) for query in queries])
    names = {f"Value #{_letter(index)}": column.title for index, column in enumerate(columns)}
    unseen = {"Time": True} | dict.fromkeys(hidden, True)
    panel.transformations(
        [
            dashboard.DataTransformerConfig(id_val="merge", options={}),
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": unseen, "indexByName": {}, "renameByName": names | {key.label: key.title}},
            ),
        ]
    )
    for column in columns:
        panel.override_by_name(column.title, [dashboard.DynamicConfigValue(id_val="unit", value=column.unit)])
    link = {
        "title": f"Show {key.title}",
        "url": f"/d/{key.dashboard_uid}?var-{key.label}=${{__value.text}}&${{__url_time_range}}",
    }
    panel.override_by_name(key.title, [dashboard.DynamicConfigValue(id_val="links", value=[link])])
    return panel


def _query(expr: str, index: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).ref_id(_letter(index)).datasource(SOURCE)


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _palette() -> dashboard_builders.FieldColor:
    """By name, so that a tenant has one colour in all panels."""
    return dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
