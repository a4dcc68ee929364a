"""Whole frames in terminals of any size, with and without colours."""

from __future__ import annotations

import pytest

from tests.vattctl.top.answers import (
    NOW_S,
    PAGE,
    crowd,
    history,
    page_map,
    printed,
    reading,
    session,
    status,
    tenant,
)
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.frame import Frame, frame
from vattctl.top.history import History
from vattctl.top.keys import help_text, key_line
from vattctl.top.reading import Reading
from vattctl.top.view import View

RIGHT = "2 of 8  every 1 s  14:03:22"


def shown(made: History, width: int = 80, height: int = 23, trouble: str = "", view: View | None = None) -> Frame:
    return frame(made, view or View(letters=True), width, height, NOW_S, RIGHT, trouble)


def two_tenants() -> Reading:
    waiting = tenant("batch", 1024, waiting_leases=2, waiting_bytes=3 * PAGE, granted_leases_total=90)
    waiting.longest_wait.FromSeconds(12)
    promised = tenant("chat", 1024, mapped_bytes=512 * PAGE, token_bytes=256 * PAGE, session_count=1)
    promised.guarantee.min_bytes, promised.promise.state = 8 << 20, pb.Promise.STATE_HELD
    sessions = [session("77-1", "chat", 1024, client_name="vattention/0.1.0"), session("78-1", "batch", 1024)]
    cells = page_map([("leased", 1)] * 20 + [("leased", 2)] * 20 + [("unbacked", 0)] * 40, ["chat", "batch"])
    return reading(1.0, status([promised, waiting], sessions), cells)


def test_all_that_matters_is_in_80_columns_and_24_lines() -> None:
    lines = printed(shown(history(two_tenants())).lines)
    assert len(lines) <= 23
    assert lines[0] == f"host  host memory  serving  up 1 h{RIGHT:>46}"
    assert lines[1] == "memory  9.00 GiB free of 16.0 GiB, vattd 128 MiB, others 6.88 GiB"
    assert lines[2].startswith("pool    AAAAAAAAAAAA")
    assert lines[2].endswith("...  50% of 256 MiB leased")
    assert lines[5].startswith("PAGES  4,096 of 64.0 KiB")
    assert lines[6:10] == ["B" * 80, "A" * 80, "." * 80, "." * 80], "a cell is four places wide"
    text = "\n".join(lines)
    assert "A batch         64.0 MiB       0 B         -         -         -       12 s" in text
    assert "B chat          64.0 MiB  32.0 MiB  8.00 MiB      held         -          -" in text
    assert "B 77-1          chat        attached    64.0 MiB       0 B      -         5 m" in text


def test_waits_and_rates_are_those_of_two_answers() -> None:
    first = reading(0.0, status([tenant("batch", granted_leases_total=60)]))
    lines = printed(shown(history(first, two_tenants())).lines)
    assert lines[3].split()[:2] == ["leases", "30.0/s"]
    assert lines[3].endswith("█  0 B/s, 0 refused/s")
    assert lines[4].split()[:3] == ["wait", "12", "s"]


@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize(("tenants", "sessions"), [(0, 0), (1, 1), (3, 64), (64, 256)])
@pytest.mark.parametrize(("width", "height"), [(80, 23), (200, 49), (149, 20), (150, 20), (40, 10), (1, 1), (8, 3)])
def test_no_line_is_too_long_and_there_are_not_too_many(
    width: int, height: int, tenants: int, sessions: int, letters: bool
) -> None:
    view = View(letters=letters)
    for trouble in ("", "no vattd answers at /run/vattd/host/admin.sock: start one with `vattd start`"):
        lines = shown(history(crowd(tenants, sessions)), width, height, trouble, view).lines
        assert len(lines) <= height
        assert all(line.cell_len <= width for line in lines)


@pytest.mark.parametrize(("tenants", "sessions"), [(0, 0), (1, 1), (64, 256), (2, 256), (64, 0)])
@pytest.mark.parametrize("width", [80, 200])
def test_both_tables_and_the_map_are_seen_however_many_rows_there_are(width: int, tenants: int, sessions: int) -> None:
    made = shown(history(crowd(tenants, sessions)), width)
    text = "\n".join(printed(made.lines))
    assert "TENANT" in text
    assert "SESSION" in text
    assert made.map_lines >= 3
    assert min(made.shown.values()) >= 1
    assert ("no tenants" in text) == (tenants == 0)
    assert ("no sessions" in text) == (sessions == 0)


def test_which_rows_are_shown_is_said_where_not_all_are() -> None:
    made = history(crowd(64, 256))
    drawn = shown(made)
    text = "\n".join(printed(drawn.lines))
    assert f"TENANT 1-{drawn.shown['tenants']}/64" in text
    scrolled = View(letters=True).scrolled(10, 64, drawn.shown["tenants"])
    assert "TENANT 11-" in "\n".join(printed(shown(made, view=scrolled).lines))
    assert "1-" not in "\n".join(printed(shown(history(two_tenants())).lines)).split("TENANT")[1].split("\n")[0]


def test_in_a_wide_terminal_tables_that_do_not_fit_below_each_other_stand_beside_each_other() -> None:
    lines = printed(shown(history(crowd(20, 64)), 200, 49).lines)
    [heads] = [line for line in lines if line.startswith("TENANT")]
    assert "│ SESSION" in heads
    few = printed(shown(history(two_tenants()), 200, 49).lines)
    assert [line for line in few if line.startswith("SESSION")], "below, where there is room for more columns"
    assert "CLIENT" in "".join(few)


def test_what_must_not_be_missed_is_said_above_the_map() -> None:
    one = two_tenants()
    one.status.daemon.state = "draining"
    one.status.pool.shortage = "the device gives no memory: 3 pages are missing"
    one.status.pool.pages_by_state.add(state="quarantined", page_count=2)
    one.status.tenants[0].promise.state = pb.Promise.STATE_BROKEN
    text = "\n".join(printed(shown(history(one)).lines))
    assert "the device gives no memory: 3 pages are missing" in text
    assert "draining: no new sessions or requests; `vattctl drain --resume` ends it" in text
    assert "promise broken: chat; `vattctl tenants` shows by whom" in text
    assert "128 KiB quarantined, lent to nobody" in text
    assert text.index("quarantined, lent") < text.index("PAGES")


def test_while_vattd_does_not_answer_the_command_to_type_is_whole_and_figures_are_grey() -> None:
    trouble = "no vattd answers at /tmp/a-name/host/admin.sock: start one with `vattd start --gpu host`. Asked again."
    drawn = shown(history(two_tenants()), trouble=trouble)
    lines = printed(drawn.lines)
    assert lines[0].startswith("host  host memory  no answer  ")
    assert "serving" not in lines[0]
    assert " ".join(" ".join(lines[1:3]).split()) == trouble
    grey = printed(drawn.lines[3:5], color_system="standard", force_terminal=True)
    assert all("\x1b[2m" in line or "\x1b[1;2m" in line for line in grey)


def test_a_vattd_that_has_not_answered_yet_has_only_its_trouble() -> None:
    assert printed(shown(History(1.0), trouble="no vattd answers").lines) == ["no vattd answers"]
    assert printed(shown(History(1.0)).lines) == []


def test_colours_are_the_tenants_own_in_the_map_the_bar_and_the_tables() -> None:
    coloured = "\n".join(
        printed(shown(history(two_tenants()), view=View(letters=False)).lines, color_system="256", force_terminal=True)
    )
    assert coloured.count("48;5;208m") >= 4, "chat: its part of the bar, of the map, its row, its session's"
    assert coloured.count("48;5;33m") >= 4


def test_only_columns_that_are_seen_can_be_sorted_by() -> None:
    narrow, wide = (shown(history(two_tenants()), width).titles for width in (80, 149))
    for table in ("tenants", "sessions"):
        assert set(narrow[table]) < set(wide[table])


def test_help_fits_the_smallest_terminal_with_its_border() -> None:
    lines = help_text().plain.splitlines()
    assert len(lines) <= 22
    assert max(len(line) for line in lines) <= 76
    assert key_line(several=True).cell_len <= 80
