"""Random lives of pages against both halves of a driver, with plain dicts as the oracle."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.vattention.vmm.rig import KIB, MIB, ON_CUDA, ON_HUGE_PAGES, Rig
from vatt.errors import DriverError
from vatt.pages import ZONE_PAGES, Extent

PAGES = 6  # a zone; few, so that operations meet
PLACES = 8

zones = st.sampled_from([0, 2])
extents = st.builds(
    lambda zone, first, count: Extent(zone * ZONE_PAGES + first, min(count, PAGES - first)),
    zones,
    st.integers(0, PAGES - 1),
    st.sampled_from([1, 1, 1, 2, 2, 3, PAGES]),
)
places = st.integers(0, PLACES - 1)


class DriverMachine(RuleBasedStateMachine):
    """Every operation succeeds exactly if the oracle allows it; one that is refused changes nothing.

    Only the first bytes of a page are painted, and checked after every step: a page's content is its last mark.
    """

    page_size_bytes = 2 * MIB if ON_CUDA or ON_HUGE_PAGES else 64 * KIB

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig.open(self.page_size_bytes)
        self.page = self.rig.page
        self.created: set[int] = set()
        self.imported: set[int] = set()
        self.mapped: dict[int, int] = {}  # place -> page id
        self.marks: dict[int, bytes] = {}  # of the pages ever written since they were created
        self.next_mark = 0

    @initialize()
    def begin_with_pages_to_map(self) -> None:
        self.address = self.rig.mapping.reserve(PLACES * self.page)
        lent = Extent(0, PAGES)
        self.rig.lend(lent)
        self.created.update(lent.page_ids)
        self.imported.update(lent.page_ids)

    def teardown(self) -> None:
        self.rig.close()

    def at(self, place: int) -> int:
        return self.address + place * self.page

    @rule(extent=extents)
    def create(self, extent: Extent) -> None:
        pages = set(extent.page_ids)
        # A page that an engine still imports is not created anew: the ledger never asks for that.
        if pages & self.created or not pages & self.imported:
            with allowed(not pages & self.created):
                self.rig.physical.create(extent)
                self.created |= pages
                self.marks.update(dict.fromkeys(pages, b"") if self.rig.physical.fresh_is_zero else {})

    @rule(extent=extents)
    def destroy(self, extent: Extent) -> None:
        pages = set(extent.page_ids)
        if not pages & self.imported:
            with allowed(pages <= self.created):
                self.rig.physical.destroy(extent)
                self.created -= pages
                for page in pages:
                    self.marks.pop(page, None)

    @rule(extent=extents)
    def scrub(self, extent: Extent) -> None:
        with allowed(set(extent.page_ids) <= self.created):
            self.rig.physical.scrub(extent)
            self.marks.update(dict.fromkeys(extent.page_ids, b""))

    @rule(extent=extents)
    def share(self, extent: Extent) -> None:
        pages = set(extent.page_ids)
        if pages <= self.created:
            with allowed(not pages & self.imported):
                self.rig.share(extent)
                self.imported |= pages

    @rule(extent=extents)
    def release(self, extent: Extent) -> None:
        pages = set(extent.page_ids)
        with allowed(pages <= self.imported and not pages & set(self.mapped.values())):
            self.rig.mapping.release(extent)
            self.imported -= pages

    @rule(data=st.data())
    def map_what_can_be_mapped(self, data: st.DataObject) -> None:
        """Random runs seldom can be. Pages that are mapped already are drawn too: they get one address more."""
        pages = sorted(self.imported)
        free = sorted(set(range(PLACES)) - set(self.mapped))
        if pages and free:
            self.map(data.draw(st.sampled_from(free)), [Extent(data.draw(st.sampled_from(pages)), 1)])

    @rule(place=places, run=st.lists(extents, min_size=1, max_size=3))
    def map(self, place: int, run: list[Extent]) -> None:
        pages = [page for extent in run for page in extent.page_ids]
        target = range(place, place + len(pages))
        fits = target.stop <= PLACES and not set(target) & set(self.mapped)
        with allowed(fits and set(pages) <= self.imported):
            self.rig.mapping.map(self.at(place), run)
            self.mapped.update(zip(target, pages, strict=True))

    @rule(data=st.data(), to=st.sampled_from(["unmapped", "released", "destroyed"]))
    def take_back_a_page_that_is_mapped(self, data: st.DataObject, to: str) -> None:
        if self.mapped:
            page = Extent(self.mapped[data.draw(st.sampled_from(sorted(self.mapped)))], 1)
            for place in [place for place, page_id in self.mapped.items() if page_id == page.first]:
                self.unmap(place, 1)
                if place != max(self.mapped, default=place):
                    self.release(page)  # refused while another address is left
            if to != "unmapped":
                self.release(page)
            if to == "destroyed":
                self.destroy(page)

    @rule(place=places, count=st.sampled_from([1, 1, 2, 2, 3, PLACES]))
    def unmap(self, place: int, count: int) -> None:
        target = set(range(place, place + count))
        with allowed(target <= set(self.mapped)):
            gone = self.rig.mapping.unmap(self.at(place), count * self.page)
            pages = [self.mapped.pop(taken) for taken in sorted(target)]
            assert [page for extent in gone for page in extent.page_ids] == pages

    @rule()
    def write(self) -> None:
        for place, page in self.mapped.items():
            self.next_mark += 1
            self.marks[page] = self.next_mark.to_bytes(8, "little")
            self.rig.bytes.write(self.at(place), self.marks[page])

    @invariant()
    def every_mapped_page_holds_what_was_last_written(self) -> None:
        for place, page in self.mapped.items():
            if page in self.marks:
                assert self.rig.bytes.read(self.at(place), 8) == (self.marks[page] or bytes(8))

    @invariant()
    def the_driver_knows_how_many_pages_are_mapped(self) -> None:
        assert self.rig.mapping.mapped_page_count == len(set(self.mapped.values()))

    @invariant()
    def only_created_pages_take_memory(self) -> None:
        assert self.rig.physical.memory().pages_bytes == len(self.created) * self.page


def allowed(yes: bool) -> AbstractContextManager[object]:
    """What follows must succeed if the oracle allows it, else the driver must refuse it."""
    return nullcontext() if yes else pytest.raises(DriverError)


def test_random_lives_of_pages_match_the_oracle() -> None:
    run_state_machine_as_test(
        DriverMachine,
        settings=settings(
            max_examples=60 if ON_CUDA or ON_HUGE_PAGES else 120,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
