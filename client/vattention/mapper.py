"""Pages at addresses: the one owner of a mapping driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vatt.errors import Closed, InvalidRequest
from vatt.pages import ZONE_PAGES, Extent
from vattention import fork_guard
from vattention.vmm.driver import Device, MappingDriver, Placement


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Reserved addresses, in whole pages. Nothing is behind them until pages are mapped."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.address + self.size_bytes


class Mapper:
    """Maps and unmaps imported pages, and remembers which page is where.

    Invariant: `_page_at` holds exactly the mapped pages, by address. Thread-safe: one lock around the driver, which no
    fork happens under. The driver itself refuses to map what is mapped, so no page is ever at two addresses.
    """

    def __init__(self, driver: MappingDriver) -> None:
        self._driver = driver
        self._birth = fork_guard.Birth()
        self._lock = fork_guard.new_driver_lock()
        self._page_at: dict[int, int] = {}
        self._closed = False

    @property
    def device(self) -> Device:
        return self._driver.device

    @property
    def page_size_bytes(self) -> int:
        return self._driver.page_size_bytes

    @property
    def mapped_pages(self) -> int:
        return len(self._page_at)

    def reserve(self, size_bytes: int) -> AddressRange:
        self._birth.check()
        with self._lock:
            return AddressRange(self._open().reserve(size_bytes), size_bytes)

    def free(self, reserved: AddressRange) -> None:
        """Give the addresses back. Nothing may be mapped in them any more."""
        self._birth.check()
        with self._lock:
            self._open().free(reserved.address, reserved.size_bytes)

    def missing_fds(self, extent: Extent) -> list[int]:
        self._birth.check()
        with self._lock:
            return self._open().missing_fds(extent)

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        self._birth.check()
        with self._lock:
            self._open().import_pages(extent, placement, fds)

    def release(self, extent: Extent) -> None:
        self._birth.check()
        with self._lock:
            self._open().release(extent)

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        """Map the extents' pages one after the other from `address`."""
        self._birth.check()
        with self._lock:
            self._open().map(address, extents)
            at = address
            for extent in extents:
                for page_id in extent.page_ids:
                    self._page_at[at] = page_id
                    at += self.page_size_bytes

    def unmap(self, address: int, page_count: int) -> list[Extent]:
        """Unmap `page_count` pages from `address` and say which they were, in the order of their addresses.

        The caller says by this that the device has stopped using them.
        """
        self._birth.check()
        size_bytes = page_count * self.page_size_bytes
        with self._lock:
            driver = self._open()
            addresses = range(address, address + size_bytes, self.page_size_bytes)
            pages = [self._page_at.get(at) for at in addresses]
            if not pages or None in pages:
                raise InvalidRequest(f"{page_count} pages from {address:#x} are not all mapped")
            driver.unmap(address, size_bytes)
            for at in addresses:
                del self._page_at[at]
        return list(_runs(page_id for page_id in pages if page_id is not None))

    def run_count(self, reserved: AddressRange) -> int:
        """Stretches of a range in which both addresses and pages are consecutive: the kernel mappings it needs."""
        with self._lock:
            addresses = sorted(at for at in self._page_at if reserved.address <= at < reserved.end)
            followed = sum(
                self._page_at.get(at - self.page_size_bytes, -2) + 1 == self._page_at[at]
                for at in addresses
                if at > reserved.address
            )
        return len(addresses) - followed

    def close(self) -> None:
        """Unmap and release everything. Idempotent; in a forked child it does nothing."""
        if not self._birth.is_here:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._page_at.clear()
            self._driver.close()

    def _open(self) -> MappingDriver:
        if self._closed:
            raise Closed("the session is closed")
        return self._driver


def _runs(page_ids: Iterable[int]) -> Iterator[Extent]:
    """The pages in the order given, as few extents as that order allows."""
    run: Extent | None = None
    for page_id in page_ids:
        if run is not None and page_id == run.end and page_id % ZONE_PAGES:
            run = Extent(run.first, run.page_count + 1)
            continue
        if run is not None:
            yield run
        run = Extent(page_id, 1)
    if run is not None:
        yield run
