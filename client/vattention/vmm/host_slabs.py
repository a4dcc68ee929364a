"""The files behind host pages: memfds of the system's own pages, or of huge ones. Each is one zone's "slab"."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

from vatt.errors import OutOfMemory
from vattention.vmm import libc
from vattention.vmm.host_memory import HostMemory, Room
from vattention.vmm.huge_memory import HUGE_PAGE_BYTES, HugeMemory, no_huge_pages
from vattention.vmm.os_call import error_of, os_call

SLAB_NAME = "vattd-slab"  # as /proc/PID/fd and /proc/PID/maps show it
SLAB_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_ZEROS = bytes(256 << 10)  # untouched, so it costs address space and no memory
_ZEROS_A_WRITE = 16
# What memfd_create says where a kernel has no huge pages at all, or none of 2 MiB.
_NO_HUGE_PAGES = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOENT})


class Memory(Protocol):
    """Where slabs take their memory from."""

    def read(self) -> Room: ...

    def headroom_of(self, total_bytes: int) -> int: ...

    def require(self, size_bytes: int) -> None: ...


class Slabs(Protocol):
    """Makes slabs, and does to them what depends on their pages. Sizes and offsets are multiples of `unit_bytes`."""

    memory: Memory
    unit_bytes: int

    def make(self, size_bytes: int) -> int:
        """A new sparse one, sealed at birth: who maps it must never see it shrink under its mappings (SIGBUS)."""

    def allocate(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        """Commit a range. After a failure some of it may be committed."""

    def zero(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        """Write zeros over a committed range."""


class SmallSlabs:
    """Of the system's own pages (4 KiB, as a rule), which are swapped and counted as any shared memory."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory: Memory = memory
        self.unit_bytes = os.sysconf("SC_PAGE_SIZE")

    def make(self, size_bytes: int) -> int:
        return os_call("memfd_create", _make_slab, size_bytes, 0)

    def allocate(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        os_call("fallocate", libc.fallocate, slab, 0, offset_bytes, size_bytes)

    def zero(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        """Punching and committing anew takes three times as long, and between the two the memory is anyone's: another
        process could take it, and a created page would have nothing behind it."""
        end = offset_bytes + size_bytes
        while offset_bytes < end:
            offset_bytes += os_call("pwritev", os.pwritev, slab, list(_zeros(end - offset_bytes)), offset_bytes)


class HugeSlabs:
    """Of 2 MiB pages from the kernel's pool of huge pages, which whoever runs the machine has set aside.

    They are never swapped, and one TLB entry covers 2 MiB. The kernel does not merge mappings of them. What was not run
    for real: a limit of the hugetlb cgroup, several NUMA nodes, a default huge page of another size.
    """

    unit_bytes = HUGE_PAGE_BYTES

    def __init__(self, memory: HugeMemory) -> None:
        self._pool = memory
        self.memory: Memory = memory

    def make(self, size_bytes: int) -> int:
        try:
            return _make_slab(size_bytes, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        except OSError as failure:
            if failure.errno not in _NO_HUGE_PAGES:
                raise error_of("memfd_create", failure) from failure
            raise no_huge_pages(f"{failure}", "memfd_create") from failure

    def allocate(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        try:
            os_call("fallocate", libc.fallocate, slab, 0, offset_bytes, size_bytes)
        except OutOfMemory as failure:
            # Somebody else was quicker, or a cgroup (hugetlb.2MB.max) or a NUMA policy allows no more.
            raise self._pool.shortage(size_bytes, failure.call, failure.code) from failure

    def zero(self, slab: int, offset_bytes: int, size_bytes: int) -> None:
        """Through a mapping, since hugetlbfs knows no write(2)."""
        read_write, flags = libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED | libc.MAP_NORESERVE
        address = os_call("mmap", libc.mmap, 0, size_bytes, read_write, flags, slab, offset_bytes)
        try:
            libc.fill_with_zeros(address, size_bytes)
        finally:
            os_call("munmap", libc.munmap, address, size_bytes)


def is_slab(fd: int, size_bytes: int, inode: int) -> bool:
    """Is this descriptor, from wherever it came, that of a slab made here or by another vattd?"""
    try:
        facts, seals = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # no memfd at all
        return False
    return (facts.st_ino, facts.st_size, seals) == (inode, size_bytes, SLAB_SEALS)


def _make_slab(size_bytes: int, flags: int) -> int:
    with ExitStack() as undo:
        slab = os.memfd_create(SLAB_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        undo.callback(os.close, slab)
        os.ftruncate(slab, size_bytes)
        fcntl.fcntl(slab, fcntl.F_ADD_SEALS, SLAB_SEALS)
        undo.pop_all()
        return slab


def _zeros(size_bytes: int) -> Iterator[memoryview]:
    """Enough zeros for one write: all that are wanted, or as many as one call takes."""
    for _ in range(_ZEROS_A_WRITE):
        if size_bytes <= 0:
            return
        yield memoryview(_ZEROS)[:size_bytes]
        size_bytes -= len(_ZEROS)
