"""The pool as a picture: with colours, and with letters where there are none."""

from __future__ import annotations

import pytest
from rich.text import Text

from tests.vattctl.top.answers import page_map, printed, status, tenant
from vattctl.top.marks import ANY_LETTER, mark
from vattctl.top.page_map import MOST_CELLS, capacity, draw, legend
from vattctl.top.pool_bar import pool_bar

SEATS = {"chat": 0, "batch": 1}
EVERY_STATE = {"dirty": 1, "clean": 1, "creating": 1, "scrubbing": 1, "destroying": 1, "quarantined": 1, "unbacked": 1}


def colours(text: Text) -> list[str]:
    """The style of each place."""
    styles = [""] * len(text)
    for span in text.spans:
        styles[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return styles


def test_letters_are_the_tenants_and_signs_are_the_states() -> None:
    cells = [("leased", 1), ("leased", 2), ("leased", 0), ("dirty", 1), ("clean", 0), ("creating", 0)]
    cells += [("scrubbing", 0), ("destroying", 0), ("quarantined", 0), ("unbacked", 0)]
    [line] = draw(page_map(cells, ["chat", "batch"]), SEATS, len(cells), 1, letters=True)
    assert line.plain == "AB?~-***!."


def test_every_state_of_the_wire_has_a_sign_in_the_legend() -> None:
    words = legend(status(pages=EVERY_STATE).pool, letters=True).plain
    assert words == "~ dirty  - clean  * in between  ! quarantined  . unbacked"
    assert legend(status(pages={"clean": 3}).pool, letters=True).plain == "- clean", "only what is there"


def test_a_colour_is_a_tenants_and_two_cells_share_a_place() -> None:
    blue, orange = mark(0).style, mark(1).style
    cells = [("leased", 1), ("leased", 1), ("leased", 2), ("unbacked", 0)]
    cells += [("leased", 1), ("leased", 2), ("unbacked", 0), ("unbacked", 0)]
    [line] = draw(page_map(cells, ["chat", "batch"]), SEATS, 4, 1, letters=False)
    assert line.plain == " ▀▀·"
    assert colours(line) == [f"on {blue}", f"{blue} on {orange}", orange, "dim"]


def test_a_last_row_that_is_not_full_is_drawn_too() -> None:
    lines = draw(page_map([("leased", 1)] * 11, ["chat"]), SEATS, 4, 2, letters=False)
    assert [len(line) for line in lines] == [4, 4]
    assert lines[1].plain == "▀▀▀ "


def test_cells_of_a_small_pool_are_wide() -> None:
    lines = draw(
        page_map([("leased", 1), ("unbacked", 0), ("leased", 2)], ["chat", "batch"]), SEATS, 80, 5, letters=True
    )
    assert printed(lines) == ["AAAA....BBBB"]


@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (80, 5), (200, 12), (7, 0), (0, 7)])
def test_a_map_of_any_size_fits(width: int, height: int, letters: bool) -> None:
    for count in (0, 1, 79, 80, 81, capacity(width, height, letters=letters), 5000):
        lines = draw(page_map([("leased", 1)] * count, ["chat"]), SEATS, width, height, letters=letters)
        assert len(lines) <= height
        assert all(len(line) <= width for line in lines)
        if count <= capacity(width, height, letters=letters):
            assert bool(lines) == bool(count and width and height)


def test_no_more_is_asked_for_than_vattd_answers_with() -> None:
    assert capacity(1000, 1000, letters=False) == MOST_CELLS
    assert capacity(0, 0, letters=True) == 1


def test_a_tenant_that_came_between_two_answers_is_nobodys() -> None:
    [line] = draw(page_map([("leased", 1)] * 5, ["new"]), SEATS, 5, 1, letters=True)
    assert line.plain == "?????"


def test_after_62_tenants_there_are_no_letters_left() -> None:
    assert len({mark(seat).letter for seat in range(62)}) == 62
    assert mark(62).letter == mark(500).letter == ANY_LETTER


def test_the_bar_is_exactly_as_wide_as_it_is_asked_and_parts_have_their_shares() -> None:
    answer = status([tenant("chat", 1024), tenant("batch", 512)], pages={"clean": 512, "unbacked": 2048})
    assert pool_bar(answer, SEATS, 8, letters=True).plain == "AAB-...."
    for width in (1, 7, 40, 333):
        assert len(pool_bar(answer, SEATS, width, letters=True)) == width
        assert len(pool_bar(answer, SEATS, width, letters=False)) == width


def test_a_part_of_the_coloured_bar_begins_with_its_tenants_letter() -> None:
    bar = pool_bar(status([tenant("batch", 2048)], pages={"unbacked": 2048}), SEATS, 8, letters=False)
    assert bar.plain == "B   ····"
    assert colours(bar)[:2] == [mark(1).on_style, f"on {mark(1).style}"]
