"""Pages at addresses: the one owner of a mapping driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vatt.errors import Closed
from vatt.pages import Extent
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
    """Maps and unmaps imported pages; a page may be at several addresses. The driver knows which page is where.

    Thread-safe: one lock around the driver, which no fork happens under. What makes no sense is refused by the driver,
    which then has changed nothing.
    """

    def __init__(self, driver: MappingDriver) -> None:
        self._driver = driver
        self._birth = fork_guard.Birth()
        self._lock = fork_guard.new_driver_lock()
        self._closed = False

    @property
    def device(self) -> Device:
        return self._driver.device

    @property
    def page_size_bytes(self) -> int:
        return self._driver.page_size_bytes

    @property
    def mapped_pages(self) -> int:
        """Pages that are mapped, each counted once."""
        return self._driver.mapped_page_count

    def reserve(self, size_bytes: int) -> AddressRange:
        self._birth.check()
        with self._lock:
            return AddressRange(self._open().reserve(size_bytes), size_bytes)

    def free(self, reserved: AddressRange) -> None:
        """Give the addresses back. Nothing may be mapped in them any more."""
        self._birth.check()
        with self._lock:
            self._open().free(reserved.address, reserved.size_bytes)

    def zone_fds(self) -> dict[int, int]:
        """New descriptors of the zones that imported pages are in; the caller closes them."""
        self._birth.check()
        with self._lock:
            return self._open().zone_fds()

    def missing_fds(self, extent: Extent) -> list[int]:
        self._birth.check()
        with self._lock:
            return self._open().missing_fds(extent)

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        self._birth.check()
        with self._lock:
            self._open().import_pages(extent, placement, fds)

    def release(self, extent: Extent) -> None:
        """Drop pages that are mapped nowhere any more."""
        self._birth.check()
        with self._lock:
            self._open().release(extent)

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        """Map the extents' pages one after the other from `address`, wherever else they are mapped."""
        self._birth.check()
        with self._lock:
            self._open().map(address, extents)

    def unmap(self, address: int, page_count: int) -> list[Extent]:
        """Unmap `page_count` pages from `address` and say which they were, in the order of their addresses.

        The caller says by this that the device has stopped using them there.
        """
        self._birth.check()
        with self._lock:
            return self._open().unmap(address, page_count * self.page_size_bytes)

    def pages_at(self, address: int, page_count: int) -> list[Extent]:
        """The pages mapped from `address` on, in the order of their addresses. All of them must be mapped."""
        self._birth.check()
        with self._lock:
            return self._open().pages_at(address, page_count * self.page_size_bytes)

    def unmapped_of(self, extents: Sequence[Extent]) -> list[Extent]:
        """Those of these pages that are mapped nowhere, in the order given."""
        self._birth.check()
        with self._lock:
            return self._open().unmapped_of(extents)

    def run_count(self, reserved: AddressRange) -> int:
        """Stretches of a range in which both addresses and pages are consecutive: the kernel mappings it needs."""
        with self._lock:
            return 0 if self._closed else self._driver.run_count(reserved.address, reserved.size_bytes)

    def close(self) -> None:
        """Unmap and release everything. Idempotent; in a forked child it does nothing."""
        if not self._birth.is_here:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._driver.close()

    def _open(self) -> MappingDriver:
        if self._closed:
            raise Closed("the session is closed")
        return self._driver
