"""Runs of pages against a plain set."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.pages import Extent
from vattention.vmm.extent_set import ExtentSet

extents = st.builds(Extent, st.integers(0, 30), st.integers(1, 8))


@given(st.lists(st.tuples(st.booleans(), extents), max_size=60))
def test_it_holds_the_pages_that_a_set_would(steps: list[tuple[bool, Extent]]) -> None:
    tested, oracle = ExtentSet(), set[int]()
    for adding, extent in steps:
        pages = set(extent.page_ids)
        assert tested.overlaps(extent) == bool(oracle & pages)
        assert tested.covers(extent) == (pages <= oracle)
        if adding and not oracle & pages:
            tested.add(extent)
            oracle |= pages
        elif not adding and pages <= oracle:
            tested.remove(extent)
            oracle -= pages
        else:
            with pytest.raises(ValueError, match="in the set"):
                (tested.add if adding else tested.remove)(extent)
        assert tested.page_count == len(oracle)
        runs = list(zip(tested._firsts, tested._ends, strict=True))
        assert [page for first, end in runs for page in range(first, end)] == sorted(oracle)
        assert all(before[1] < after[0] for before, after in pairwise(runs))


@given(st.lists(extents, max_size=12), extents)
def test_what_is_discarded_is_out_of_it_whether_all_of_it_was_there_or_not(there: list[Extent], extent: Extent) -> None:
    tested, oracle = ExtentSet(), set[int]()
    for one in there:
        for gap in list(tested.gaps(one)):
            tested.add(gap)
        oracle |= set(one.page_ids)
    assert tested.discard(extent) == len(oracle & set(extent.page_ids))
    assert not tested.overlaps(extent)
    assert tested.page_count == len(oracle - set(extent.page_ids))
