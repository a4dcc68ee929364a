"""The pool as a picture: its pages in order, cut into cells, each with what most of its pages are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vatt.pages import Extent
from vattd.snapshot import PageState

MAX_CELLS = 8192


@dataclass(frozen=True, slots=True)
class Owner:
    """What a page is, and whose; `tenant` is empty where it is nobody's."""

    state: PageState
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """Pages of one owner: some by run, some by id, and some of which nobody has said which they are."""

    owner: Owner
    extents: Sequence[Extent] = ()
    page_ids: Sequence[int] = ()
    unnamed_pages: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """`page_count` of the `total_pages` of a cell are `owner`'s, more than anybody else's."""

    owner: Owner
    page_count: int
    total_pages: int


@dataclass(frozen=True, slots=True)
class PageMap:
    """Cells of `pages_per_cell` pages each; the last may have fewer. Their pages sum to the pool's limit."""

    pages_per_cell: int
    cells: tuple[Cell, ...]


def draw(patches: Iterable[Patch], max_pages: int, cell_count: int) -> PageMap:
    """Pages that have an id come first, by id, so that neighbours in memory are neighbours here; then those that have
    memory and no known id, then those without memory. At most `cell_count` cells."""
    pages_per_cell = -(-max_pages // cell_count)
    cells: list[Cell] = []
    inside: Counter[Owner] = Counter()
    room = pages_per_cell
    for owner, page_count in _in_order(list(patches), max_pages):
        while page_count:
            if room == pages_per_cell and page_count >= room:  # a whole cell of one owner, as most are
                cells.append(Cell(owner, room, room))
                page_count -= room
                continue
            part = min(room, page_count)
            inside[owner] += part
            page_count -= part
            room -= part
            if not room:
                cells.append(_cell_of(inside))
                inside.clear()
                room = pages_per_cell
    if inside:
        cells.append(_cell_of(inside))
    return PageMap(pages_per_cell, tuple(cells))


def _in_order(patches: list[Patch], max_pages: int) -> Iterator[tuple[Owner, int]]:
    """Runs of one owner's pages."""
    runs = [(first, page_count, patch.owner) for patch in patches for first, page_count in _runs(patch)]
    runs.sort(key=lambda run: run[0])
    left = max_pages
    for _, page_count, owner in runs:
        left -= page_count
        yield owner, page_count
    for patch in patches:
        if patch.unnamed_pages:
            left -= patch.unnamed_pages
            yield patch.owner, patch.unnamed_pages
    if left > 0:
        yield Owner(PageState.UNBACKED), left


def _runs(patch: Patch) -> Iterator[tuple[int, int]]:
    """Pages beside each other: the first, and how many. Not as extents: of a million, that takes seconds."""
    for extent in patch.extents:
        yield extent.first, extent.page_count
    first = end = -1
    for page_id in sorted(patch.page_ids):
        if page_id != end:
            if end > first:
                yield first, end - first
            first = page_id
        end = page_id + 1
    if end > first:
        yield first, end - first


def _cell_of(inside: Counter[Owner]) -> Cell:
    ((owner, page_count),) = inside.most_common(1)
    return Cell(owner, page_count, inside.total())
