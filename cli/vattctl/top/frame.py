"""A whole frame: lines for a terminal of some size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from rich.text import Text

from vattctl.top import page_map
from vattctl.top.head import ends, figure_lines, notices, who_line
from vattctl.top.history import History
from vattctl.top.reading import Reading
from vattctl.top.session_rows import session_columns, session_rows
from vattctl.top.shape import is_wide, map_lines, table_rows, table_width
from vattctl.top.table import Column, fit, header, in_order, line
from vattctl.top.tenant_rows import tenant_columns, tenant_rows
from vattctl.top.view import SESSIONS, TENANTS, View

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Frame:
    """`shown` are rows of the tables, of so many that there are `in_all`; `map_lines` are what a map may take."""

    lines: Sequence[Text]
    map_lines: int
    shown: Mapping[str, int]
    in_all: Mapping[str, int]


def frame(history: History, view: View, width: int, height: int, now_s: float, right: str, trouble: str) -> Frame:
    """Lines of at most `width`. `right` stands at the end of the first; `trouble` is why no new answer came."""
    reading = history.latest
    if reading is None:
        nobody = dict.fromkeys((TENANTS, SESSIONS), 0)
        return Frame(_troubles(trouble, width), 0, nobody, nobody)
    status = reading.status
    head = [who_line(status, now_s, right, width, is_stale=bool(trouble)), *_troubles(trouble, width)]
    figures = [*figure_lines(history, width, letters=view.letters, curves=view.curves), *notices(status)]
    lines = [*head, *figures]
    in_all = {TENANTS: len(status.tenants), SESSIONS: len(status.sessions)}
    counts = tuple(max(1, count) for count in in_all.values())  # that there are none takes a row too
    for_map = map_lines(width, height - len(lines), *counts)
    lines += _map(reading, history, view, width, for_map)
    shown = table_rows(width, height - len(lines), *counts)
    lines += _tables(history, view, width, shown, now_s)
    for text in lines:
        text.truncate(width, overflow="ellipsis")
    for text in lines[len(head) :] if trouble else []:  # what was so once
        text.stylize("dim")
    return Frame(lines[:height], for_map, shown, in_all)


def titles(view: View, width: int) -> list[str]:
    """The columns that the table in focus can be sorted by: those that are shown."""
    if view.focus == SESSIONS:
        return list(fit(session_columns(letters=view.letters), table_width(width)))
    return list(fit(tenant_columns(letters=view.letters, curves=view.curves), table_width(width)))


def _troubles(trouble: str, width: int) -> list[Text]:
    return [Text(words, "bold red") for words in textwrap.wrap(trouble, max(1, width))]


def _map(reading: Reading, history: History, view: View, width: int, height: int) -> list[Text]:
    """With its title; nothing where there is no room."""
    if not height:
        return []
    pool, cells = reading.status.pool, reading.page_map
    title = ends(page_map.title(pool, cells), page_map.legend(pool, letters=view.letters), width)
    return [title, *page_map.draw(cells, history.seats, width, height, letters=view.letters)]


def _tables(history: History, view: View, width: int, shown: Mapping[str, int], now_s: float) -> Iterator[Text]:
    each = table_width(width)
    of_tenants = tenant_columns(letters=view.letters, curves=view.curves)
    of_sessions = session_columns(letters=view.letters)
    tenants = _table(tenant_rows(history), of_tenants, TENANTS, view, each, shown)
    sessions = _table(session_rows(history, now_s), of_sessions, SESSIONS, view, each, shown)
    if not is_wide(width):
        yield from tenants
        yield from sessions
        return
    for left, right in zip_longest(tenants, sessions):
        beside = left.copy() if left is not None else Text()
        beside.pad_right(each - beside.cell_len)
        yield Text.assemble(beside, (" │ ", "dim"), right or "")


def _table(
    rows: Sequence[Row], columns: Sequence[Column[Row]], name: str, view: View, width: int, shown: Mapping[str, int]
) -> list[Text]:
    order, count = view.orders[name], shown[name]
    top = max(0, min(view.tops[name], len(rows) - count))
    widths = fit(columns, width)
    where = f" {top + 1}-{top + count}/{len(rows)}" if count < len(rows) else ""
    head = header(columns, widths, order, has_keys=view.focus == name, where=where)
    if not rows:
        return [head, Text(f"no {name}", "dim")]
    return [head, *(line(row, columns, widths) for row in in_order(rows, columns, order)[top : top + count])]
