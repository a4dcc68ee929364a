"""Tables that fit, sort and scroll."""

from __future__ import annotations

import pytest
from rich.text import Text

from vattctl.top.session_rows import session_columns
from vattctl.top.table import Column, Order, fit, header, in_order, line, words
from vattctl.top.tenant_rows import tenant_columns
from vattctl.top.view import SESSIONS, TENANTS, View

Row = tuple[str, int]
COLUMNS: list[Column[Row]] = [
    words("NAME", 1, 6, lambda row, _: Text(row[0]), lambda row: row[0], lambda row: len(row[0])),
    Column("SIZE", 2, 6, lambda row, _: Text(str(row[1])), lambda row: row[1]),
    Column("REST", 3, 5, lambda row, _: Text("rest"), lambda row: "", most=9, is_figure=False),
]
ROWS = [("b", 1), ("c", 3), ("a", 3)]


def test_figures_begin_with_the_largest_and_words_with_the_first_and_equals_are_by_name() -> None:
    assert in_order(ROWS, COLUMNS, Order("SIZE")) == [("a", 3), ("c", 3), ("b", 1)]
    assert in_order(ROWS, COLUMNS, Order("SIZE").turned()) == [("b", 1), ("a", 3), ("c", 3)]
    assert in_order(ROWS, COLUMNS, Order("NAME")) == [("a", 3), ("b", 1), ("c", 3)]
    assert in_order(ROWS, COLUMNS, Order("NAME").turned())[0] == ("c", 3)


def test_the_next_order_is_that_of_the_next_column_and_goes_round() -> None:
    titles = ["NAME", "SIZE", "REST"]
    assert Order("SIZE", is_reversed=True).next(titles, 1) == Order("REST")
    assert Order("REST").next(titles, 1) == Order("NAME").next(titles, -1).next(titles, 1) == Order("NAME")
    assert Order("WIDE ONLY").next(titles, 1) == Order("NAME"), "its column is not shown any more"


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (3, {"NAME": 6}),
        (14, {"NAME": 6, "SIZE": 6}),
        (17, {"NAME": 9, "SIZE": 6}),
        (21, {"NAME": 6, "SIZE": 6, "REST": 5}),
        (26, {"NAME": 10, "SIZE": 6, "REST": 6}),
        (100, {"NAME": 10, "SIZE": 6, "REST": 9}),
    ],
)
def test_what_matters_less_is_left_out_and_what_may_grow_grows(width: int, widths: dict[str, int]) -> None:
    assert fit(COLUMNS, width, [("b", 1), ("ten-places", 2)]) == widths
    assert fit(COLUMNS, width).keys() == widths.keys()


def test_cells_stand_below_their_titles_and_are_cut_where_they_are_too_long() -> None:
    widths = fit(COLUMNS, 21)
    assert header(COLUMNS, widths, Order("SIZE"), has_keys=True).plain == "NAME     SIZE▾  REST "
    assert header(COLUMNS, widths, Order("NAME").turned(), has_keys=True).plain == "NAME▾     SIZE  REST "
    assert line(("long-name", 12), COLUMNS, widths).plain == "long-…      12  rest "


@pytest.mark.parametrize("title", [column.title for column in tenant_columns(letters=True, curves=True)])
def test_every_title_fits_its_column_with_an_arrow(title: str) -> None:
    columns = tenant_columns(letters=True, curves=True)
    assert f"{title}▾" in header(columns, fit(columns, 1000), Order(title), has_keys=True).plain.replace("▴", "▾")


def test_every_title_of_a_session_fits_too() -> None:
    columns = session_columns(letters=True)
    for column in columns:
        shown = header(columns, fit(columns, 1000), Order(column.title), has_keys=False).plain
        assert f"{column.title}▾" in shown.replace("▴", "▾")


def test_scrolling_ends_at_both_ends_and_sorting_goes_back_to_the_first_row() -> None:
    view = View(letters=True).scrolled(7, 10, 4)
    assert view.tops == {TENANTS: 6, SESSIONS: 0}
    assert view.scrolled(-100, 10, 4).tops[TENANTS] == 0
    assert view.scrolled(5, 3, 4).tops[TENANTS] == 0, "all are shown"
    assert view.with_order(Order("NAME")).tops[TENANTS] == 0
    assert view.with_other_table().with_order(Order("NAME")).orders[TENANTS] == view.orders[TENANTS]
