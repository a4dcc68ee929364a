"""A report for a terminal, in 80 columns, and for an issue, as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from vattctl.bench.facts import SIMULATED_WORDS
from vattctl.bench.report import Report
from vattctl.bench.tables import Table, tables
from vattctl.output import new_table, spaced


def render(report: Report) -> RenderableType:
    return spaced([_rich(table) for table in tables(report) if not table.is_detail])


def markdown(report: Report) -> str:
    simulated = f"**SIMULATED**: {SIMULATED_WORDS}\n\n" if report.is_simulated else ""
    head = f"## vattctl bench: {report.environment.device_name}\n\n{simulated}".rstrip()
    return "\n\n".join([head, *(_markdown(table) for table in tables(report) if not table.is_extract)])


def _rich(table: Table) -> RenderableType:
    grid = new_table() if any(table.columns) else RichTable.grid(padding=(0, 2))
    for at, column in enumerate(table.columns):
        is_words = at < table.words
        grid.add_column(Text(column.upper()), justify="left" if is_words else "right", no_wrap=any(table.columns))
    for row in table.rows:
        grid.add_row(*map(Text, row))
    parts: list[RenderableType] = [Text(table.title, style="bold")] if any(table.columns) else []
    return Group(*parts, grid, *(Text(note, style="dim") for note in table.notes))


def _markdown(table: Table) -> str:
    columns = [column or " " for column in table.columns]
    lines = [_row(columns)]
    lines.append(_row(["---" if at < table.words else "---:" for at in range(len(columns))]))
    lines += [_row([cell.replace("|", "\\|") for cell in row]) for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    if table.is_detail:  # which a forge folds
        return "\n".join([f"<details><summary>{table.title}</summary>", "", *lines, "", "</details>"])
    return "\n".join([f"### {table.title}", "", *lines])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
