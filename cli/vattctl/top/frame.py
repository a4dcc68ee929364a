"""A whole frame: lines for a terminal of some size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeVar

from rich.text import Text

from vattctl.top import page_map
from vattctl.top.head import ends, figure_lines, notices, who_line
from vattctl.top.history import History
from vattctl.top.reading import Reading
from vattctl.top.session_rows import session_columns, session_rows
from vattctl.top.shape import are_beside, map_lines, table_rows, table_width
from vattctl.top.table import Column, fit, header, in_order, line
from vattctl.top.tenant_rows import tenant_columns, tenant_rows
from vattctl.top.view import SESSIONS, TENANTS, View

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Frame:
    """`map_lines` are what a map may take. Of each table: its titles, how many rows are shown, how many there are."""

    lines: Sequence[Text]
    map_lines: int = 0
    titles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shown: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((TENANTS, SESSIONS), 0))
    in_all: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((TENANTS, SESSIONS), 0))


def frame(history: History, view: View, width: int, height: int, now_s: float, right: str, trouble: str) -> Frame:
    """Lines of at most `width`. `right` stands at the end of the first; `trouble` is why no new answer came."""
    reading = history.latest
    if reading is None:
        return Frame(_troubles(trouble, width)[:height])
    status = reading.status
    head = [who_line(status, now_s, right, width, is_stale=bool(trouble)), *_troubles(trouble, width)]
    figures = [*figure_lines(history, width, letters=view.letters, curves=view.curves), *notices(status)]
    lines = [*head, *figures]
    in_all = {TENANTS: len(status.tenants), SESSIONS: len(status.sessions)}
    counts = [max(1, count) for count in in_all.values()]  # that there are none takes a row too
    beside = are_beside(width, height - len(lines), *counts)
    for_map = map_lines(height - len(lines), *counts, beside=beside)
    lines += _map(reading, history, view, width, for_map)
    shown = table_rows(height - len(lines), *counts, beside=beside)
    each = table_width(width, beside=beside)
    tenants = _tenants(history, view, each, shown[TENANTS])
    sessions = _sessions(history, view, each, shown[SESSIONS], now_s)
    lines += _beside(tenants, sessions, each) if beside else [*tenants, *sessions]
    for text in lines:
        text.truncate(width, overflow="ellipsis")
    for text in lines[len(head) :] if trouble else []:  # what was so once
        text.stylize("dim")
    return Frame(lines[:height], for_map, _titles(view, each), shown, in_all)


def _troubles(trouble: str, width: int) -> list[Text]:
    return [Text(words, "bold red") for words in textwrap.wrap(trouble, max(1, width))]


def _map(reading: Reading, history: History, view: View, width: int, height: int) -> list[Text]:
    """With its title; nothing where there is no room."""
    if not height:
        return []
    pool, cells = reading.status.pool, reading.page_map
    title = ends(page_map.title(pool, cells), page_map.legend(pool, letters=view.letters), width)
    return [title, *page_map.draw(cells, history.seats, width, height, letters=view.letters)]


def _tenants(history: History, view: View, width: int, count: int) -> list[Text]:
    columns = tenant_columns(letters=view.letters, curves=view.curves)
    return _table(tenant_rows(history), columns, TENANTS, view, width, count)


def _sessions(history: History, view: View, width: int, count: int, now_s: float) -> list[Text]:
    columns = session_columns(letters=view.letters)
    return _table(session_rows(history, now_s), columns, SESSIONS, view, width, count)


def _titles(view: View, width: int) -> Mapping[str, Sequence[str]]:
    tenants = fit(tenant_columns(letters=view.letters, curves=view.curves), width)
    return {TENANTS: list(tenants), SESSIONS: list(fit(session_columns(letters=view.letters), width))}


def _beside(lefts: Sequence[Text], rights: Sequence[Text], width: int) -> Iterator[Text]:
    for left, right in zip_longest(lefts, rights):
        padded = left.copy() if left is not None else Text()
        padded.pad_right(width - padded.cell_len)
        yield Text.assemble(padded, (" │ ", "dim"), right or "")


def _table(
    rows: Sequence[Row], columns: Sequence[Column[Row]], name: str, view: View, width: int, count: int
) -> list[Text]:
    order = view.orders[name]
    top = max(0, min(view.tops[name], len(rows) - count))
    where = f" {top + 1}-{top + count}/{len(rows)}" if count < len(rows) else ""
    widths = fit(columns, width, rows, f"{columns[0].title}{where}▾")
    head = header(columns, widths, order, has_keys=view.focus == name, where=where)
    if not rows:
        return [head, Text(f"no {name}", "dim")]
    return [head, *(line(row, columns, widths) for row in in_order(rows, columns, order)[top : top + count])]
