"""A dashboard: its variables, its links to the others, and its panels in rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from deploy.dashboards.panels import SOURCE, Panel

GRID_WIDTH = 24
TAG = "vattd"


@dataclass(frozen=True, slots=True)
class Variable:
    """What a reader chooses: one value of a label, or, with `several`, any number of them or all."""

    name: str
    title: str
    query: str
    several: bool


@dataclass(frozen=True, slots=True)
class Row:
    """Panels beside each other, all as high and as wide; those that find no room go below."""

    panels: Sequence[Panel]
    height: int
    columns: int


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Board:
    """`name` is its file's, `uid` its address in Grafana: neither ever changes."""

    name: str
    title: str
    text: str
    variables: Sequence[Variable]
    sections: Sequence[Section]

    @property
    def uid(self) -> str:
        return f"vattd-{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Grafana's model of it."""
        board = builders.Dashboard(self.title).uid(self.uid).description(self.text).tags([TAG])
        board.time("now-1h", "now").refresh("30s").timezone("browser").editable()
        board.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        board.with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        for variable in self.variables:
            board.with_variable(_variable(variable))
        board.link(_links_to_the_others())
        _place(board, self.sections)
        return dict(json.loads(JSONEncoder().encode(board.build())))


def _variable(variable: Variable) -> builders.QueryVariable:
    built = builders.QueryVariable(variable.name).label(variable.title).datasource(SOURCE)
    built.query({"query": variable.query, "refId": variable.name})
    built.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.NATURAL_ASC)
    built.allow_custom_value(False)
    if variable.several:
        built.multi(True).include_all(True).all_value(".+")
        built.current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    return built


def _links_to_the_others() -> builders.DashboardLink:
    """Without variables: "all GPUs" would be no value of a dashboard that shows one."""
    link = builders.DashboardLink("vattd").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.icon("external link").as_dropdown(False).include_vars(False).keep_time(True)


def _place(board: builders.Dashboard, sections: Sequence[Section]) -> None:
    """By our own rule: the SDK's leaves gaps where panels differ in height."""
    number, y = 0, 0
    for section in sections:
        number += 1
        board.with_row(builders.Row(section.title).id(number).grid_pos(dashboard.GridPos(h=1, w=GRID_WIDTH, x=0, y=y)))
        y += 1
        for row in section.rows:
            width = GRID_WIDTH // row.columns
            for index, panel in enumerate(row.panels):
                number += 1
                down, across = divmod(index, row.columns)
                place = dashboard.GridPos(h=row.height, w=width, x=across * width, y=y + down * row.height)
                board.with_panel(_At(panel, number, place))
            y += row.height * -(-len(row.panels) // row.columns)


class _At:
    """A panel in its place."""

    def __init__(self, panel: Panel, number: int, place: dashboard.GridPos) -> None:
        self._panel, self._number, self._place = panel, number, place

    def build(self) -> dashboard.Panel:
        built = self._panel.build()
        built.id_val, built.grid_pos = self._number, self._place
        return built
