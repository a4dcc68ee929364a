"""What only huge pages do. Collected by test_driver_on_huge_pages.py's child, never by itself."""

from __future__ import annotations

import os

import pytest

from tests.vattention.vmm.rig import KIB, Rig
from vatt.errors import DriverError, InvalidRequest, OutOfMemory
from vatt.pages import Extent
from vattention.vmm import open_physical
from vattention.vmm.host_mapping import HostMapping
from vattention.vmm.host_slabs import HugeSlabs
from vattention.vmm.huge_memory import HUGE_PAGE_BYTES, HugeMemory


def free_bytes() -> int:
    return HugeMemory().read().available_bytes


def test_the_default_page_is_one_huge_page() -> None:
    driver = open_physical("host", huge_pages=True)
    assert driver.page_size_bytes == HUGE_PAGE_BYTES
    driver.close()


def test_created_pages_come_from_the_pool_and_to_map_and_write_them_takes_no_more(rig: Rig) -> None:
    before = free_bytes()
    address = rig.map_new([Extent(3, 4)])
    rig.paint(address, [3, 4, 5, 6])
    rig.physical.scrub(Extent(3, 4))
    assert before - free_bytes() == 4 * rig.page
    rig.mapping.unmap(address, 4 * rig.page)
    rig.mapping.release(Extent(3, 4))
    rig.physical.destroy(Extent(3, 4))
    assert free_bytes() == before


def test_to_map_a_page_that_vattd_has_destroyed_reserves_none(rig: Rig) -> None:
    before = free_bytes()
    rig.lend(Extent(0, 2))
    rig.physical.destroy(Extent(0, 2))
    rig.mapping.map(rig.mapping.reserve(2 * rig.page), [Extent(0, 2)])
    assert free_bytes() == before


def test_a_create_that_the_kernel_refuses_half_way_keeps_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    room = HugeMemory().read()
    monkeypatch.setattr(HugeMemory, "require", lambda memory, size_bytes: None)  # as if others were quicker
    with pytest.raises(OutOfMemory, match=r"fallocate: ENOSPC .*set more aside: (sysctl -w|echo) "):
        rig.physical.create(Extent(0, room.available_bytes // rig.page + 1))
    assert HugeMemory().read() == room
    rig.physical.create(Extent(0, 1))


def test_smaller_pages_than_huge_ones_are_refused_on_both_sides(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match=f"from {HUGE_PAGE_BYTES} to"):
        open_physical("host", 64 * KIB, huge_pages=True)
    mapping = HostMapping(64 * KIB)
    small = open_physical("host", 64 * KIB)
    slab = HugeSlabs(HugeMemory()).make(HUGE_PAGE_BYTES)
    try:
        with pytest.raises(DriverError, match="huge pages"):
            mapping.import_pages(Extent(0, 1), small.placement(Extent(0, 1)), [slab])
    finally:
        os.close(slab)
        small.close()
        mapping.close()
