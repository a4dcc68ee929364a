"""What is mapped, kept as runs, against plain dicts of pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vatt.errors import DriverError
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm.mapping_table import MappingTable
from vattention.vmm.page_counts import PageCounts

PAGE = 4096
PAGES = 12
PLACES = 24
ADDRESSES = {0: 1 << 40, 1: (1 << 40) + PLACES * PAGE}  # two reservations that adjoin

# Around the border of two zones, over which no run goes.
extents = st.builds(
    lambda first, count: Extent(ZONE_PAGES - 6 + first, min(count, (6 if first < 6 else PAGES) - first)),
    st.integers(0, PAGES - 1),
    st.sampled_from([1, 1, 2, 3, 6]),
)
ranges = st.builds(
    lambda place, count: (place, min(place + count, PLACES)),
    st.integers(0, PLACES - 1),
    st.sampled_from([1, 1, 2, 3, 8, PLACES]),
)
reservations = st.sampled_from(sorted(ADDRESSES))


class MappingTableMachine(RuleBasedStateMachine):
    """Every step is allowed exactly if the oracle says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table = MappingTable(PAGE)
        self.table.add_import(Extent(ZONE_PAGES - 6, 6))
        self.table.add_import(Extent(ZONE_PAGES, 6))
        self.page_at: dict[int, int] = {}  # by address
        for address in ADDRESSES.values():
            self.table.add_reservation(address, PLACES * PAGE)

    @rule(reservation=reservations, place=st.integers(0, PLACES - 1), run=st.lists(extents, min_size=1, max_size=3))
    def map(self, reservation: int, place: int, run: list[Extent]) -> None:
        pages = [page_id for extent in run for page_id in extent.page_ids]
        address = ADDRESSES[reservation] + place * PAGE
        target = range(address, address + len(pages) * PAGE, PAGE)
        if place + len(pages) > PLACES or not self.page_at.keys().isdisjoint(target):
            with pytest.raises(DriverError):
                self.table.check_map(address, run)
        else:
            self.table.check_map(address, run)
            self.table.add_mapped(address, run)
            self.page_at.update(zip(target, pages, strict=True))

    @rule(reservation=reservations, places=ranges)
    def unmap(self, reservation: int, places: tuple[int, int]) -> None:
        address, size_bytes = ADDRESSES[reservation] + places[0] * PAGE, (places[1] - places[0]) * PAGE
        target = range(address, address + size_bytes, PAGE)
        if not self.page_at.keys() >= set(target):
            for step in (self.table.check_unmap, self.table.pages_at):
                with pytest.raises(DriverError, match="nothing is mapped"):
                    step(address, size_bytes)
            return
        self.table.check_unmap(address, size_bytes)
        before = self.table.pages_at(address, size_bytes)
        gone = self.table.drop_mapped(address, size_bytes)
        assert gone == before
        assert [page for extent in gone for page in extent.page_ids] == [self.page_at.pop(at) for at in target]
        assert all(a.end != b.first or b.first % ZONE_PAGES == 0 for a, b in pairwise(gone)), "fewer would do"

    @precondition(lambda self: self.page_at)
    @rule(data=st.data(), count=st.integers(1, 4))
    def unmap_what_is_mapped(self, data: st.DataObject, count: int) -> None:
        at = data.draw(st.sampled_from(sorted(self.page_at)))
        while at + count * PAGE > max(self.page_at) + PAGE:
            count -= 1
        reservation = int(at >= ADDRESSES[1])
        place = (at - ADDRESSES[reservation]) // PAGE
        self.unmap(reservation, (place, min(place + count, PLACES)))

    @rule(reservation=reservations, places=ranges)
    def count_runs(self, reservation: int, places: tuple[int, int]) -> None:
        address, end = (ADDRESSES[reservation] + place * PAGE for place in places)
        inside = {at: page for at, page in self.page_at.items() if address <= at < end}
        firsts = [at for at, page in inside.items() if inside.get(at - PAGE, -2) + 1 != page or not page % ZONE_PAGES]
        assert self.table.run_count(address, end - address) == len(firsts)

    @rule(extent=extents)
    def ask_whether_pages_may_go(self, extent: Extent) -> None:
        if set(extent.page_ids) & set(self.page_at.values()):
            with pytest.raises(DriverError, match="unmap first"):
                self.table.check_release(extent)
        else:
            self.table.check_release(extent)
        unmapped = [page for run in self.table.unmapped_of([extent]) for page in run.page_ids]
        assert unmapped == [page for page in extent.page_ids if page not in self.page_at.values()]

    @invariant()
    def a_page_that_is_mapped_twice_counts_once(self) -> None:
        assert self.table.mapped_page_count == len(set(self.page_at.values()))

    @invariant()
    def stretches_hold_exactly_the_mapped_addresses(self) -> None:
        stretches = list(self.table.mapped_stretches())
        assert [at for start, size in stretches for at in range(start, start + size, PAGE)] == sorted(self.page_at)
        assert all(
            first + size < second or second == ADDRESSES[1]  # a stretch ends with its reservation
            for (first, size), (second, _) in pairwise(stretches)
        )


TestMappingTable = MappingTableMachine.TestCase


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 9)), max_size=60))
def test_counts_are_those_of_a_plain_dict_in_the_fewest_runs(steps: list[tuple[bool, int, int]]) -> None:
    tested, oracle = PageCounts(), dict.fromkeys(range(40), 0)
    for adding, first, page_count in steps:
        pages = range(first, first + page_count)
        assert tested.any(first, first + page_count) == any(oracle[page] for page in pages)
        if adding or all(oracle[page] for page in pages):
            tested.change(first, first + page_count, by=1 if adding else -1)
            for page in pages:
                oracle[page] += 1 if adding else -1
        assert tested.page_count == sum(count > 0 for count in oracle.values())
        assert tested._counts[-1] == 0
        assert all(before != after for before, after in pairwise(tested._counts))
        ends = [*tested._bounds[1:], 40]
        runs = zip(tested._bounds, ends, tested._counts, strict=True)
        assert [count for start, end, count in runs for _ in range(start, end)] == list(oracle.values())
