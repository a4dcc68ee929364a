"""What both PhysicalDrivers promise. Run on host memory here, and by test_driver_on_cuda.py on CUDA."""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.vattention.vmm.rig import Rig
from vatt.errors import DriverError, OutOfMemory
from vatt.pages import ZONE_PAGES, Extent

TIB = 1 << 40


def test_what_is_created_is_counted_and_destroying_gives_it_back(rig: Rig) -> None:
    rig.physical.create(Extent(3, 4))
    assert rig.physical.memory().pages_bytes == 4 * rig.page
    rig.physical.destroy(Extent(4, 2))
    assert rig.physical.memory().pages_bytes == 2 * rig.page
    rig.physical.destroy(Extent(3, 1))
    rig.physical.destroy(Extent(6, 1))
    assert rig.physical.memory().pages_bytes == 0


def test_free_memory_is_within_the_total(rig: Rig) -> None:
    memory = rig.physical.memory()
    assert 0 < memory.free_bytes <= memory.total_bytes


@pytest.mark.parametrize("taken", [Extent(0, 1), Extent(3, 1), Extent(0, 4), Extent(1, 2)])
def test_creating_a_created_page_is_refused_and_creates_none(rig: Rig, taken: Extent) -> None:
    rig.physical.create(taken)
    with pytest.raises(DriverError, match="created already"):
        rig.physical.create(Extent(0, 4))
    assert rig.physical.memory().pages_bytes == taken.page_count * rig.page
    rig.physical.destroy(taken)
    rig.physical.create(Extent(0, 4))


@pytest.mark.parametrize("operation", ["destroy", "scrub"])
@pytest.mark.parametrize("extent", [Extent(0, 3), Extent(1, 3), Extent(3, 1), Extent(ZONE_PAGES + 1, 1)])
def test_pages_that_are_not_all_created_are_left_alone(rig: Rig, operation: str, extent: Extent) -> None:
    rig.physical.create(Extent(1, 2))
    with pytest.raises(DriverError, match="not all"):
        getattr(rig.physical, operation)(extent)
    assert rig.physical.memory().pages_bytes == 2 * rig.page


def test_a_page_that_is_not_created_cannot_be_exported(rig: Rig) -> None:
    rig.physical.create(Extent(1, 1))
    with pytest.raises(DriverError, match="not all"):
        rig.physical.export(0)


def test_an_exported_descriptor_does_not_survive_exec(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    fd = rig.physical.export(0)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


def test_creating_more_than_there_is_raises_out_of_memory_and_creates_none(rig: Rig) -> None:
    before = rig.physical.memory()
    with pytest.raises(OutOfMemory):
        rig.physical.create(Extent(0, before.total_bytes // rig.page + 1))
    assert rig.physical.memory().pages_bytes == 0
    rig.physical.create(Extent(0, 1))


def test_a_fresh_page_may_be_lent_unscrubbed_only_if_it_holds_nothing_of_the_last_one(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.paint(address, [0, 1])
    rig.mapping.unmap(address, 2 * rig.page)
    rig.mapping.release(Extent(0, 2))
    rig.physical.destroy(Extent(0, 2))
    rig.lend(Extent(0, 2))
    rig.mapping.map(address, [Extent(0, 2)])
    # CUDA promises nothing here, so its pages are scrubbed first.
    assert rig.is_zero(address, 2) or not rig.physical.fresh_is_zero


def test_a_scrubbed_page_is_zero_for_who_maps_it_and_its_neighbours_are_not(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 3)])
    rig.paint(address, [0, 1, 2])
    rig.physical.scrub(Extent(1, 1))
    assert rig.painted(address, [0])
    assert rig.is_zero(address + rig.page, 1)
    assert rig.painted(address + 2 * rig.page, [2])
    assert rig.physical.memory().pages_bytes == 3 * rig.page


def test_more_pages_than_one_batch_are_scrubbed(rig: Rig) -> None:
    count = 70 if rig.page >= 2 << 20 else 1100
    address = rig.map_new([Extent(5, count)])
    for place in range(count):
        rig.bytes.write(address + place * rig.page, b"secret")
    rig.physical.scrub(Extent(5, count))
    assert not any(any(rig.bytes.read(address + place * rig.page, 6)) for place in range(count))


def test_closing_twice_is_harmless_and_nothing_is_created_afterwards(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    rig.physical.close()
    rig.physical.close()
    with pytest.raises(DriverError, match="close"):
        rig.physical.create(Extent(1, 1))
    with pytest.raises(DriverError):
        rig.physical.export(0)
