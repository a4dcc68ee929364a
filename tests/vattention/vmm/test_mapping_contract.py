"""What both MappingDrivers promise. Run on host memory here, and by test_driver_on_cuda.py on CUDA."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.vattention.vmm.rig import Rig
from vatt.errors import DriverError
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import HandleKind, Placement, open_mapping

TIB = 1 << 40

# Address ranges


def test_an_address_range_is_aligned_and_may_be_far_larger_than_memory(rig: Rig) -> None:
    size_bytes = 2 * TIB
    address = rig.mapping.reserve(size_bytes)
    assert address % rig.page == 0
    rig.lend(Extent(0, 1))
    rig.mapping.map(address + size_bytes - rig.page, [Extent(0, 1)])
    rig.paint(address + size_bytes - rig.page, [0])
    rig.mapping.unmap(address + size_bytes - rig.page, rig.page)
    rig.mapping.free(address, size_bytes)


@pytest.mark.parametrize("extra_bytes", [0, 1, -1])
def test_a_range_of_anything_but_whole_pages_is_refused(rig: Rig, extra_bytes: int) -> None:
    size_bytes = extra_bytes if extra_bytes == 0 else rig.page + extra_bytes
    with pytest.raises(DriverError, match="multiple"):
        rig.mapping.reserve(size_bytes)


def test_only_exactly_what_was_reserved_can_be_freed_and_only_once(rig: Rig) -> None:
    address = rig.mapping.reserve(4 * rig.page)
    for wrong in [(address, 2 * rig.page), (address + rig.page, 3 * rig.page), (address, 5 * rig.page), (0, rig.page)]:
        with pytest.raises(DriverError, match="one reserve"):
            rig.mapping.free(*wrong)
    rig.mapping.free(address, 4 * rig.page)
    with pytest.raises(DriverError, match="one reserve"):
        rig.mapping.free(address, 4 * rig.page)


def test_a_range_with_something_mapped_in_it_cannot_be_freed(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.paint(address, [0, 1])
    with pytest.raises(DriverError, match="unmap first"):
        rig.mapping.free(address, 2 * rig.page)
    assert rig.painted(address, [0, 1])
    rig.mapping.unmap(address, 2 * rig.page)
    rig.mapping.free(address, 2 * rig.page)


# Imports


def test_pages_are_imported_once(rig: Rig) -> None:
    rig.lend(Extent(0, 4))
    with pytest.raises(DriverError, match="imported already"):
        rig.share(Extent(3, 1))
    rig.mapping.release(Extent(3, 1))
    rig.share(Extent(3, 1))


def test_the_wrong_number_of_descriptors_is_refused(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    placement = rig.physical.placement(Extent(0, 1))
    with ExitStack() as fds:
        exported = [rig.physical.export(0) for _ in range(2)]
        for fd in exported:
            fds.callback(os.close, fd)
        for wrong in ([], exported):
            with pytest.raises(DriverError, match="descriptors"):
                rig.mapping.import_pages(Extent(0, 1), placement, wrong)
        rig.mapping.import_pages(Extent(0, 1), placement, exported[:1])


def test_a_placement_of_another_size_or_kind_is_refused(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    right = rig.physical.placement(Extent(0, 1))
    other_kind = HandleKind.SLAB_FD if right.kind is HandleKind.POSIX_FD else HandleKind.POSIX_FD
    fd = rig.physical.export(0)
    try:
        for wrong in (
            replace(right, page_size_bytes=2 * rig.page),
            Placement(other_kind, rig.page, 0),
            Placement(HandleKind.SLAB_FD, rig.page, rig.page),
        ):
            with pytest.raises(DriverError, match="is at"):
                rig.mapping.import_pages(Extent(0, 1), wrong, [fd])
    finally:
        os.close(fd)
    with pytest.raises(DriverError, match="not all"):
        rig.mapping.release(Extent(0, 1))


def test_an_import_leaves_the_callers_descriptors_open(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    fd = rig.physical.export(0)
    rig.mapping.import_pages(Extent(0, 1), rig.physical.placement(Extent(0, 1)), [fd])
    os.close(fd)  # would raise if it were closed


def test_pages_that_are_not_all_imported_are_not_released(rig: Rig) -> None:
    rig.lend(Extent(1, 2))
    for extent in (Extent(0, 2), Extent(2, 2), Extent(7, 1)):
        with pytest.raises(DriverError, match="not all"):
            rig.mapping.release(extent)
    rig.mapping.release(Extent(1, 2))
    with pytest.raises(DriverError, match="not all"):
        rig.mapping.release(Extent(1, 1))


def test_a_mapped_page_cannot_be_released(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.mapping.unmap(address, rig.page)
    with pytest.raises(DriverError, match="unmap first"):
        rig.mapping.release(Extent(0, 2))
    rig.paint(address + rig.page, [1])
    rig.mapping.release(Extent(0, 1))
    assert rig.painted(address + rig.page, [1])


def test_two_engines_see_the_same_bytes(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.paint(address, [0, 1])
    other = open_mapping(rig.physical.device.backend, rig.physical.device.uuid, rig.page)
    try:
        rig.share(Extent(0, 2), to=other)
        elsewhere = other.reserve(2 * rig.page)
        other.map(elsewhere, [Extent(1, 1), Extent(0, 1)])
        assert rig.painted(elsewhere, [1, 0])
    finally:
        other.close()
    assert rig.painted(address, [0, 1])


def test_an_engine_keeps_its_pages_when_the_daemon_goes(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.paint(address, [0, 1])
    rig.physical.close()
    assert rig.painted(address, [0, 1])
    rig.mapping.unmap(address, 2 * rig.page)
    rig.mapping.map(address, [Extent(1, 1), Extent(0, 1)])
    assert rig.painted(address, [1, 0])


# Mappings


def test_pages_appear_in_the_order_they_were_named(rig: Rig) -> None:
    extents = [Extent(7, 2), Extent(0, 1), Extent(1, 2), Extent(3 * ZONE_PAGES, 1), Extent(ZONE_PAGES - 1, 1)]
    page_ids = [page_id for extent in extents for page_id in extent.page_ids]
    address = rig.map_new(extents)
    rig.paint(address, page_ids)
    rig.mapping.unmap(address, len(page_ids) * rig.page)
    for place, page_id in enumerate(reversed(page_ids)):
        rig.mapping.map(address + place * rig.page, [Extent(page_id, 1)])
    assert rig.painted(address, page_ids[::-1])


def test_a_page_keeps_its_bytes_from_one_address_to_the_next(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 1)])
    rig.paint(address, [0])
    rig.mapping.unmap(address, rig.page)
    elsewhere = rig.mapping.reserve(3 * rig.page)
    rig.mapping.map(elsewhere + rig.page, [Extent(0, 1)])
    assert rig.painted(elsewhere + rig.page, [0])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_mapping_over_something_mapped_is_refused_and_changes_nothing(rig: Rig, place: int) -> None:
    rig.lend(Extent(0, 4))
    address = rig.mapping.reserve(4 * rig.page)
    taken = address + place * rig.page
    rig.mapping.map(taken, [Extent(3, 1)])
    rig.paint(taken, [3])
    with pytest.raises(DriverError, match="mapped already"):
        rig.mapping.map(address, [Extent(0, 3)])
    assert rig.painted(taken, [3])
    rig.mapping.unmap(taken, rig.page)
    rig.mapping.map(address, [Extent(0, 4)])  # so none of them stayed mapped


def test_a_page_at_two_addresses_is_the_same_bytes_at_both(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    elsewhere = rig.mapping.reserve(2 * rig.page)
    rig.mapping.map(elsewhere, [Extent(1, 1)])
    rig.mapping.map(elsewhere + rig.page, [Extent(0, 1)])
    rig.paint(address, [0, 1])
    assert rig.painted(elsewhere, [1, 0])
    rig.paint(elsewhere, [8, 9])
    assert rig.painted(address, [9, 8])
    assert rig.mapping.mapped_page_count == 2


def test_one_call_may_name_a_page_twice(rig: Rig) -> None:
    rig.lend(Extent(0, 3))
    address = rig.mapping.reserve(6 * rig.page)
    rig.mapping.map(address, [Extent(0, 1), Extent(0, 3), Extent(1, 2)])
    rig.paint(address + rig.page, [0, 1, 2])
    assert rig.painted(address, [0, 0, 1, 2, 1, 2])
    assert rig.mapping.mapped_page_count == 3
    assert rig.mapping.unmap(address, 6 * rig.page) == [Extent(0, 1), Extent(0, 3), Extent(1, 2)]
    assert rig.mapping.mapped_page_count == 0


def test_unmapping_one_address_leaves_the_others_and_the_last_lets_go_of_the_page(rig: Rig) -> None:
    rig.lend(Extent(0, 2))
    places = [rig.mapping.reserve(2 * rig.page) for _ in range(3)]
    for address in places:
        rig.mapping.map(address, [Extent(0, 2)])
    rig.paint(places[0], [0, 1])
    for left in (2, 1):
        assert rig.mapping.unmap(places[left], 2 * rig.page) == [Extent(0, 2)]
        for address in places[:left]:
            assert rig.painted(address, [0, 1])
        with pytest.raises(DriverError, match="nothing is mapped"):
            rig.mapping.unmap(places[left], 2 * rig.page)
        with pytest.raises(DriverError, match="unmap first"):
            rig.mapping.release(Extent(0, 2))
        assert rig.mapping.unmapped_of([Extent(0, 2)]) == []
    rig.mapping.unmap(places[0], rig.page)
    assert rig.mapping.unmapped_of([Extent(1, 1), Extent(0, 2)]) == [Extent(0, 1)]
    rig.mapping.release(Extent(0, 1))
    with pytest.raises(DriverError, match="unmap first"):
        rig.mapping.release(Extent(1, 1))
    rig.mapping.unmap(places[0] + rig.page, rig.page)
    rig.mapping.release(Extent(1, 1))


def test_closing_with_pages_at_several_addresses_leaves_nothing(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2)])
    elsewhere = rig.mapping.reserve(5 * rig.page)
    rig.mapping.map(elsewhere, [Extent(1, 1), Extent(0, 2)])
    rig.mapping.map(elsewhere + 4 * rig.page, [Extent(1, 1)])
    rig.paint(address, [0, 1])
    rig.mapping.close()
    assert rig.mapping.mapped_page_count == 0
    rig.physical.destroy(Extent(0, 2))
    assert rig.physical.memory().pages_bytes == 0


def test_a_driver_says_which_pages_are_where(rig: Rig) -> None:
    rig.lend(Extent(0, 6))
    address = rig.mapping.reserve(8 * rig.page)
    rig.mapping.map(address, [Extent(4, 2)])
    rig.mapping.map(address + 2 * rig.page, [Extent(0, 1), Extent(1, 2)])
    rig.mapping.map(address + 6 * rig.page, [Extent(3, 1)])
    assert rig.mapping.pages_at(address + rig.page, 3 * rig.page) == [Extent(5, 1), Extent(0, 2)]
    assert rig.mapping.run_count(address, 8 * rig.page) == 3
    assert rig.mapping.run_count(address + 2 * rig.page, 2 * rig.page) == 1
    assert rig.mapping.run_count(address + 5 * rig.page, rig.page) == 0
    for ask in (rig.mapping.pages_at, rig.mapping.unmap):
        with pytest.raises(DriverError, match="nothing is mapped"):
            ask(address, 7 * rig.page)
    for outside in (rig.mapping.pages_at, rig.mapping.run_count):
        with pytest.raises(DriverError, match="within one reservation"):
            outside(address, 9 * rig.page)
    assert rig.mapping.unmap(address + 3 * rig.page, 2 * rig.page) == [Extent(1, 2)]
    assert rig.mapping.mapped_page_count == 4


def test_only_imported_pages_are_mapped(rig: Rig) -> None:
    rig.lend(Extent(0, 2))
    address = rig.mapping.reserve(4 * rig.page)
    with pytest.raises(DriverError, match="not all"):
        rig.mapping.map(address, [Extent(0, 2), Extent(2, 1)])
    rig.mapping.map(address, [Extent(0, 2)])


def test_pages_are_mapped_only_within_one_reserved_range_at_page_boundaries(rig: Rig) -> None:
    rig.lend(Extent(0, 3))
    address = rig.mapping.reserve(2 * rig.page)
    with pytest.raises(DriverError, match="within one reservation"):
        rig.mapping.map(address, [Extent(0, 3)])
    with pytest.raises(DriverError, match="within one reservation"):
        rig.mapping.map(address - rig.page, [Extent(0, 2)])
    with pytest.raises(DriverError, match="whole pages"):
        rig.mapping.map(address + rig.page // 2, [Extent(0, 1)])
    with pytest.raises(DriverError, match="whole pages"):
        rig.mapping.map(address, [])
    rig.mapping.free(address, 2 * rig.page)
    with pytest.raises(DriverError, match="within one reservation"):
        rig.mapping.map(address, [Extent(0, 1)])


def test_any_run_of_whole_mapped_pages_can_be_unmapped(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 3), Extent(8, 3)])
    page_ids = [0, 1, 2, 8, 9, 10]
    rig.paint(address, page_ids)
    rig.mapping.unmap(address + rig.page, 4 * rig.page)  # from inside one extent into the next
    assert rig.painted(address, [0])
    assert rig.painted(address + 5 * rig.page, [10])
    rig.mapping.map(address + rig.page, [Extent(1, 2), Extent(8, 2)])
    assert rig.painted(address, page_ids)


def test_holes_and_parts_of_pages_are_not_unmapped(rig: Rig) -> None:
    rig.lend(Extent(0, 2))
    address = rig.mapping.reserve(4 * rig.page)
    rig.mapping.map(address, [Extent(0, 1)])
    rig.mapping.map(address + 2 * rig.page, [Extent(1, 1)])
    rig.paint(address, [0])
    rig.paint(address + 2 * rig.page, [1])
    for hole in [(address, 3 * rig.page), (address + rig.page, rig.page), (address + 3 * rig.page, rig.page)]:
        with pytest.raises(DriverError, match="nothing is mapped"):
            rig.mapping.unmap(*hole)
    for part in [(address, rig.page // 2), (address + rig.page // 2, rig.page), (address, 0)]:
        with pytest.raises(DriverError, match="whole pages"):
            rig.mapping.unmap(*part)
    with pytest.raises(DriverError, match="within one reservation"):
        rig.mapping.unmap(address + 2 * rig.page, 3 * rig.page)
    assert rig.painted(address, [0])
    assert rig.painted(address + 2 * rig.page, [1])


def test_closing_drops_everything_once_and_for_all(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 2), Extent(5, 1)])
    rig.mapping.unmap(address + rig.page, rig.page)
    rig.mapping.reserve(rig.page)
    rig.mapping.close()
    rig.mapping.close()
    with pytest.raises(DriverError):
        rig.mapping.unmap(address, rig.page)
    with pytest.raises(DriverError, match="close"):
        rig.mapping.reserve(rig.page)
    with pytest.raises(DriverError, match="close"):
        rig.share(Extent(0, 1))


def test_both_halves_name_the_device_the_same(rig: Rig) -> None:
    assert rig.mapping.device.uuid == rig.physical.device.uuid
    assert rig.mapping.device.backend == rig.physical.device.backend
