"""A table that fits a width and a height: columns that matter less are left out, rows are scrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rich.text import Text

Row = TypeVar("Row")
BETWEEN_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """Of `importance` 1 is left out last. It may grow from `width` to `most`, or to what words of a row need."""

    title: str
    importance: int
    width: int
    cell: Callable[[Row, int], Text]
    key: Callable[[Row], Any]
    most: int = 0
    needed: Callable[[Row], int] | None = None
    is_figure: bool = True


def words(
    title: str,
    importance: int,
    width: int,
    cell: Callable[[Row, int], Text],
    key: Callable[[Row], Any],
    needed: Callable[[Row], int] | None = None,
) -> Column[Row]:
    """A column that is no figure."""
    return Column(title, importance, width, cell, key, needed=needed, is_figure=False)


@dataclass(frozen=True, slots=True)
class Order:
    """Figures begin with the largest, words with the first; unless reversed."""

    title: str
    is_reversed: bool = False

    def next(self, titles: Sequence[str], step: int) -> Order:
        at = titles.index(self.title) if self.title in titles else -step
        return Order(titles[(at + step) % len(titles)])

    def turned(self) -> Order:
        return replace(self, is_reversed=not self.is_reversed)


def in_order(rows: Sequence[Row], columns: Sequence[Column[Row]], order: Order) -> list[Row]:
    """Equal ones by the first column."""
    by = next((column for column in columns if column.title == order.title), columns[0])
    first = sorted(rows, key=columns[0].key)
    return sorted(first, key=by.key, reverse=by.is_figure != order.is_reversed)


def fit(columns: Sequence[Column[Row]], width: int, rows: Sequence[Row] = (), head: str = "") -> Mapping[str, int]:
    """The columns that fit, by title, each with its width. What they are does not depend on the rows.

    `head` stands above the first one.
    """
    chosen: list[Column[Row]] = []
    left = width + BETWEEN_COLUMNS
    for column in sorted(columns, key=lambda one: one.importance):
        if column.width + BETWEEN_COLUMNS > left and chosen:
            break
        chosen.append(column)
        left -= column.width + BETWEEN_COLUMNS
    widths = {column.title: column.width for column in columns if column in chosen}
    for column in chosen:
        most = max(map(column.needed, rows), default=0) if column.needed else column.most
        most = max(most, len(head)) if column is columns[0] else most
        more = max(0, min(left, most - column.width))
        widths[column.title] += more
        left -= more
    return widths


def header(
    columns: Sequence[Column[Row]], widths: Mapping[str, int], order: Order, *, has_keys: bool, where: str = ""
) -> Text:
    """The sorted column has an arrow, and is reversed in the table that keys go to. `where`: which rows are shown."""
    cells = []
    for column in columns:
        if column.title not in widths:
            continue
        title = Text(column.title, "bold")
        if column.title == order.title:
            title = Text(f"{column.title}{'▴' if column.is_figure == order.is_reversed else '▾'}", "bold")
            title.stylize("reverse" if has_keys else "underline")
        if column is columns[0]:
            title.append(where, "not bold dim not reverse not underline")
        cells.append(_placed(title, column, widths))
    return _joined(cells)


def line(row: Row, columns: Sequence[Column[Row]], widths: Mapping[str, int]) -> Text:
    shown = [column for column in columns if column.title in widths]
    return _joined([_placed(column.cell(row, widths[column.title]), column, widths) for column in shown])


def _placed(cell: Text, column: Column[Row], widths: Mapping[str, int]) -> Text:
    """Exactly as wide as its column; what does not fit ends with an ellipsis."""
    width = widths[column.title]
    cell.truncate(width, overflow="ellipsis")
    if column.is_figure:
        cell.pad_left(width - cell.cell_len)
    else:
        cell.pad_right(width - cell.cell_len)
    return cell


def _joined(cells: Sequence[Text]) -> Text:
    return Text(" " * BETWEEN_COLUMNS, no_wrap=True).join(cells)
