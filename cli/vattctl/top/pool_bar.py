"""The pool as a bar: what each tenant leases, then what is dirty, clean, and not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.text import Text

from vatt.v1 import vatt_pb2 as pb
from vattctl.top.marks import BETWEEN, mark
from vattctl.top.paint import Paint, line_of, paint_of

AFTER_LEASED = ("dirty", *BETWEEN, "quarantined", "clean", "unbacked")


def pool_bar(status: pb.GetStatusResponse, seats: Mapping[str, int], width: int, *, letters: bool) -> Text:
    """`width` places, each part's share rounded where it ends, so that the sum is the whole.

    Among colours a tenant's part begins with its letter: there are more tenants than colours.
    """
    parts = list(_parts(status, seats))
    whole, end, bar = sum(pages for pages, _ in parts), 0, Text(no_wrap=True)
    for pages, paint in parts:
        end += pages
        count = round(end * width / whole) - bar.cell_len if whole else 0
        part = line_of([paint] * count, letters=letters)
        if part and not letters and paint.sign.isalnum():
            part = Text.assemble((paint.sign, f"color(16) on {paint.style}"), part[1:])
        bar.append_text(part)
    return bar


def _parts(status: pb.GetStatusResponse, seats: Mapping[str, int]) -> Iterator[tuple[int, Paint]]:
    page, in_state = status.pool.page_size_bytes or 1, {one.state: one.page_count for one in status.pool.pages_by_state}
    others = in_state.get("leased", 0)
    for tenant in sorted(status.tenants, key=lambda one: (-one.leased_bytes, one.name)):
        pages = tenant.leased_bytes // page
        others -= pages
        yield pages, paint_of("leased", mark(seats.get(tenant.name, 0)))
    yield max(0, others), paint_of("leased", None)
    for state in AFTER_LEASED:
        yield in_state.get(state, 0), paint_of(state, None)
