"""Both halves of one device in one process, and a way to look at the bytes behind an address."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vatt.pages import Extent
from vattention.vmm import MappingDriver, PhysicalDriver, open_mapping, open_physical
from vattention.vmm.cuda_call import call

# Set where CUDA is to be tested: in a child of the test run that lives in a simulated world, or has a GPU.
ON_CUDA = bool(os.environ.get("VATTD_TEST_CUDA"))
# Set where huge pages are to be tested: in a child of the test run, on a machine that has set enough of them aside.
ON_HUGE_PAGES = bool(os.environ.get("VATTD_TEST_HUGE_PAGES"))

KIB, MIB = 1 << 10, 1 << 20


class HostBytes:
    def read(self, address: int, size_bytes: int) -> bytes:
        return ctypes.string_at(address, size_bytes)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def close(self) -> None:
        pass


class CudaBytes:
    """By copies, which a real GPU needs too, and in a context, which copies need."""

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal
        call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", ordinal))

    def read(self, address: int, size_bytes: int) -> bytes:
        data = bytearray(size_bytes)
        call("cuMemcpyDtoH", data, address, size_bytes)
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        call("cuMemcpyHtoD", address, data, len(data))

    def close(self) -> None:
        call("cuCtxSetCurrent", 0)
        call("cuDevicePrimaryCtxRelease", self._ordinal)


def open_bytes(backend: str, ordinal: int) -> HostBytes | CudaBytes:
    return CudaBytes(ordinal) if backend == "cuda" else HostBytes()


@dataclass
class Rig:
    """vattd's half and an engine's, with the handle socket between them left out."""

    physical: PhysicalDriver
    mapping: MappingDriver
    bytes: HostBytes | CudaBytes
    undo: ExitStack = field(repr=False)

    @classmethod
    def open(cls, page_size_bytes: int | None) -> Rig:
        with ExitStack() as undo:
            physical = open_physical("0" if ON_CUDA else "host", page_size_bytes, huge_pages=ON_HUGE_PAGES)
            undo.callback(physical.close)
            device = physical.device
            mapping = open_mapping(device.backend, device.uuid, physical.page_size_bytes)
            undo.callback(mapping.close)
            memory = open_bytes(device.backend, device.ordinal)
            undo.callback(memory.close)
            return cls(physical, mapping, memory, undo.pop_all())

    @property
    def page(self) -> int:
        return self.physical.page_size_bytes

    def close(self) -> None:
        self.undo.close()

    def lend(self, *extents: Extent, to: MappingDriver | None = None) -> None:
        """Create pages and import them."""
        for extent in extents:
            self.physical.create(extent)
            self.share(extent, to)

    def share(self, extent: Extent, to: MappingDriver | None = None) -> None:
        """Import pages that exist."""
        mapping = to or self.mapping
        with ExitStack() as fds:
            exported = [self.physical.export(page_id) for page_id in mapping.missing_fds(extent)]
            for fd in exported:
                fds.callback(os.close, fd)
            mapping.import_pages(extent, self.physical.placement(extent), exported)

    def map_new(self, extents: Sequence[Extent]) -> int:
        """Lend pages and map them in an address range of their own; its address."""
        self.lend(*extents)
        address = self.mapping.reserve(sum(extent.page_count for extent in extents) * self.page)
        self.mapping.map(address, extents)
        return address

    def paint(self, address: int, page_ids: Sequence[int]) -> None:
        """Write each page's own pattern over all of it."""
        for place, page_id in enumerate(page_ids):
            self.bytes.write(address + place * self.page, pattern(page_id, self.page))

    def painted(self, address: int, page_ids: Sequence[int]) -> bool:
        """Does each of the pages mapped here hold its pattern?"""
        return all(
            self.bytes.read(address + place * self.page, self.page) == pattern(page_id, self.page)
            for place, page_id in enumerate(page_ids)
        )

    def is_zero(self, address: int, page_count: int) -> bool:
        return not any(any(self.bytes.read(address + place * self.page, self.page)) for place in range(page_count))


def pattern(page_id: int, size_bytes: int) -> bytes:
    """Bytes that no other page has, at no other place."""
    unit = b"".join((page_id * 1_000_003 + line).to_bytes(16, "little") for line in range(256))
    return unit * (size_bytes // len(unit))


def mapping_count() -> int:
    """The kernel's count of this process's mappings."""
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)
