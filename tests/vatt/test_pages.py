"""Extents and the free list, against plain sets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vatt.pages import ZONE_PAGES, Extent, FreeExtents, LedgerBug, extents_of

SPACE = 60


class FreeExtentsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.free = FreeExtents()
        self.oracle: set[int] = set()

    @rule(first=st.integers(0, SPACE), page_count=st.integers(1, 9))
    def give_back(self, first: int, page_count: int) -> None:
        pages = set(range(first, first + page_count))
        if pages & self.oracle:
            with pytest.raises(LedgerBug, match="free already"):
                self.free.give_back(Extent(first, page_count))
        else:
            self.free.give_back(Extent(first, page_count))
            self.oracle |= pages

    @rule(first=st.integers(0, SPACE), page_count=st.integers(1, 9))
    def remove(self, first: int, page_count: int) -> None:
        pages = set(range(first, first + page_count))
        if pages <= self.oracle:
            self.free.remove(Extent(first, page_count))
            self.oracle -= pages
        else:
            with pytest.raises(LedgerBug, match="not free"):
                self.free.remove(Extent(first, page_count))

    @rule(page_count=st.integers(0, 30))
    def take(self, page_count: int) -> None:
        longest = max((extent.page_count for extent in self.free), default=0)
        taken = self.free.take(page_count)
        pages = {page_id for extent in taken for page_id in extent.page_ids}
        assert len(pages) == min(page_count, len(self.oracle)) == sum(extent.page_count for extent in taken)
        assert pages <= self.oracle
        assert page_count == 0 or page_count > longest or len(taken) == 1, "one run would have done"
        self.oracle -= pages

    @rule(page_count=st.integers(1, 9))
    def take_run(self, page_count: int) -> None:
        fitting = sorted(extent.page_count for extent in self.free if extent.page_count >= page_count)
        run = self.free.take_run(page_count)
        if run is None:
            assert not fitting
        else:
            assert run.page_count == page_count
            self.oracle -= set(run.page_ids)
            left = sorted(extent.page_count for extent in self.free if extent.page_count >= page_count)
            assert len(left) >= len(fitting) - 1, "not the smallest that fits"

    @rule(first=st.integers(0, SPACE + 9), page_count=st.integers(1, 9))
    def take_at(self, first: int, page_count: int) -> None:
        free_from_here = next(count for count in itertools.count() if first + count not in self.oracle)
        run = self.free.take_at(first, page_count)
        if run is None:
            assert free_from_here == 0
        else:
            assert run == Extent(first, min(page_count, free_from_here))
            self.oracle -= set(run.page_ids)

    @invariant()
    def extents_are_maximal_and_hold_exactly_the_pages(self) -> None:
        assert list(self.free) == extents_of(self.oracle)
        assert self.free.page_count == len(self.oracle)
        assert len(self.free) == len(list(self.free))


TestFreeExtents = FreeExtentsMachine.TestCase


@given(st.sets(st.integers(0, 200)))
def test_extents_of_holds_exactly_the_pages_in_the_fewest_runs(pages: set[int]) -> None:
    extents = extents_of(pages)
    assert [page_id for extent in extents for page_id in extent.page_ids] == sorted(pages)
    assert all(a.end < b.first for a, b in itertools.pairwise(extents))


def test_extents_of_refuses_a_page_named_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        extents_of([3, 4, 3])


def test_extents_never_cross_a_zone() -> None:
    assert len(extents_of([ZONE_PAGES - 1, ZONE_PAGES])) == 2
    free = FreeExtents([Extent(ZONE_PAGES - 1, 1), Extent(ZONE_PAGES, 1)])
    assert len(free) == 2
    assert free.take_at(ZONE_PAGES - 1, 2) == Extent(ZONE_PAGES - 1, 1)
    with pytest.raises(ValueError, match="not an extent"):
        Extent(ZONE_PAGES - 1, 2)


@pytest.mark.parametrize(("first", "page_count"), [(-1, 1), (0, 0), (0, -1)])
def test_nonsense_is_no_extent(first: int, page_count: int) -> None:
    with pytest.raises(ValueError, match="not an extent"):
        Extent(first, page_count)
