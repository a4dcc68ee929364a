from __future__ import annotations

import pytest

from tests.vattention.host_pages import HostPages
from vatt.errors import Closed, DriverError
from vatt.pages import Extent


def test_unmap_says_which_pages_were_there_in_the_order_of_addresses(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    pages = host_pages.lease(8)
    assert pages == [Extent(0, 8)]
    reserved = mapper.reserve(8 * page)
    mapper.map(reserved.address, [Extent(4, 3), Extent(0, 2)])
    assert mapper.mapped_pages == 5
    assert mapper.run_count(reserved) == 2
    assert mapper.unmap(reserved.address + 2 * page, 3) == [Extent(6, 1), Extent(0, 2)]
    assert mapper.unmap(reserved.address, 2) == [Extent(4, 2)]
    assert mapper.mapped_pages == 0
    mapper.free(reserved)
    host_pages.give_back(pages)


def test_runs_that_meet_at_their_ends_count_as_one(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    host_pages.lease(4)
    reserved = mapper.reserve(4 * page)
    mapper.map(reserved.address, [Extent(0, 2)])
    mapper.map(reserved.address + 2 * page, [Extent(2, 2)])
    assert mapper.run_count(reserved) == 1


def test_a_page_at_several_addresses_is_one_mapped_page(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    pages = host_pages.lease(4)
    reserved = mapper.reserve(8 * page)
    mapper.map(reserved.address, [Extent(0, 4)])
    prefix = mapper.pages_at(reserved.address, 2)
    assert prefix == [Extent(0, 2)]
    mapper.map(reserved.address + 4 * page, prefix)
    assert mapper.mapped_pages == 4
    assert mapper.unmap(reserved.address, 4) == [Extent(0, 4)]
    assert mapper.mapped_pages == 2
    assert mapper.unmapped_of([Extent(0, 4)]) == [Extent(2, 2)]
    with pytest.raises(DriverError, match="unmap first"):
        host_pages.give_back(pages)
    assert mapper.unmap(reserved.address + 4 * page, 2) == prefix
    host_pages.give_back(pages)


def test_unmapping_what_is_not_mapped_changes_nothing(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    host_pages.lease(2)
    reserved = mapper.reserve(4 * page)
    mapper.map(reserved.address, [Extent(0, 2)])
    for address, page_count in [(reserved.address, 3), (reserved.end, 1), (reserved.address, 0)]:
        with pytest.raises(DriverError):
            mapper.unmap(address, page_count)
    assert mapper.unmap(reserved.address, 2) == [Extent(0, 2)]


def test_a_map_that_the_driver_refuses_changes_nothing(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    host_pages.lease(2)
    reserved = mapper.reserve(2 * page)
    with pytest.raises(DriverError):
        mapper.map(reserved.address, [Extent(0, 1), Extent(900, 1)])
    assert mapper.mapped_pages == 0
    mapper.map(reserved.address, [Extent(0, 2)])


def test_a_closed_mapper_says_so(host_pages: HostPages) -> None:
    host_pages.mapper.close()
    host_pages.mapper.close()
    with pytest.raises(Closed):
        host_pages.mapper.reserve(4096)


def test_a_closed_mapper_has_nothing_mapped(host_pages: HostPages) -> None:
    mapper, page = host_pages.mapper, host_pages.mapper.page_size_bytes
    reserved = mapper.reserve(4 * page)
    mapper.map(reserved.address, host_pages.lease(2))
    mapper.close()
    assert mapper.mapped_pages == mapper.run_count(reserved) == 0
