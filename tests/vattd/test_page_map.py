"""A map's cells say what most of their pages are, with a plain list of pages as the oracle."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vatt.pages import extents_of
from vattd.page_map import Owner, Patch, draw
from vattd.snapshot import PageState

OWNERS = [Owner(PageState.LEASED, "a"), Owner(PageState.LEASED, "b"), Owner(PageState.CLEAN)]
UNBACKED = Owner(PageState.UNBACKED)


@given(
    named=st.lists(st.sampled_from([*OWNERS, None]), max_size=60),
    unnamed=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    unbacked=st.integers(0, 20),
    cell_count=st.integers(1, 40),
)
def test_cells_are_the_pages_in_order(
    named: list[Owner | None], unnamed: list[int], unbacked: int, cell_count: int
) -> None:
    """`named` has, by page id, whose it is; None: no page has that id."""
    patches = []
    for number, owner in enumerate(OWNERS):
        page_ids = [page_id for page_id, whose in enumerate(named) if whose is owner]
        patch = Patch(owner, page_ids=page_ids[::-1], unnamed_pages=unnamed[number])
        patches.append(patch if number else Patch(owner, extents_of(page_ids), unnamed_pages=unnamed[number]))
    pages = [whose for whose in named if whose is not None]
    pages += [owner for owner, count in zip(OWNERS, unnamed, strict=True) for _ in range(count)]
    pages += [UNBACKED] * unbacked
    if not pages:
        return
    found = draw(patches, len(pages), cell_count)
    size = found.pages_per_cell
    assert len(found.cells) == -(-len(pages) // size) <= cell_count
    for number, cell in enumerate(found.cells):
        inside = Counter(pages[number * size : (number + 1) * size])
        assert cell.total_pages == inside.total()
        assert cell.page_count == inside[cell.owner] == max(inside.values())
