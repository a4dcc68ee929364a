"""The kernel's pool of 2 MiB huge pages: set aside by whoever runs the machine, and apart from all other memory."""

from __future__ import annotations

from pathlib import Path

from vatt.errors import DriverError, OutOfMemory
from vattention.vmm.host_memory import Room
from vattention.vmm.os_call import os_call

HUGE_PAGE_BYTES = 2 << 20

_POOL = Path("sys/kernel/mm/hugepages/hugepages-2048kB")


class HugeMemory:
    """The huge pages that nobody has or has reserved. Nothing is kept as headroom unless asked for: the rest of the
    machine cannot use them. Pages that the kernel would make on demand (nr_overcommit_hugepages) do not count.

    `root` stands for / so that tests can feed trees of their own. Raises OutOfMemory if the pool is empty, DriverError
    if the kernel has none.
    """

    def __init__(self, root: Path = Path("/"), headroom_bytes: int = 0) -> None:
        self._pool = root / _POOL
        self._meminfo = root / "proc" / "meminfo"
        self._headroom_bytes = headroom_bytes
        if not self._pool.is_dir():
            raise no_huge_pages(f"there is no {self._pool}")
        if self.read().total_bytes == 0:
            raise OutOfMemory(
                f"no huge pages are set aside: {self._command(512)} (for 1 GiB)", "fallocate", "HUGE_PAGES"
            )

    def read(self) -> Room:
        free_pages = self._count("free_hugepages") - self._count("resv_hugepages")
        total_bytes = self._count("nr_hugepages") * HUGE_PAGE_BYTES
        return Room(total_bytes, free_pages * HUGE_PAGE_BYTES, str(self._pool / "free_hugepages"))

    def headroom_of(self, total_bytes: int) -> int:
        return self._headroom_bytes

    def require(self, size_bytes: int) -> None:
        """Raises OutOfMemory if there are not this many, or the headroom would be eaten into."""
        if self.read().available_bytes - self._headroom_bytes < size_bytes:
            raise self.shortage(size_bytes, "fallocate", "HUGE_PAGES")

    def shortage(self, size_bytes: int, call: str, code: str) -> OutOfMemory:
        """Why so much could not be had, and the command that makes the pool large enough."""
        room = self.read()
        missing_bytes = max(HUGE_PAGE_BYTES, size_bytes + self._headroom_bytes - room.available_bytes)
        page_count = -(-(room.total_bytes + missing_bytes) // HUGE_PAGE_BYTES)
        return OutOfMemory(
            f"{call}: {code} ({size_bytes} bytes of huge pages are wanted, {room.available_bytes} of "
            f"{room.total_bytes} are free and {self._headroom_bytes} of those are kept as headroom; set more aside: "
            f"{self._command(page_count)})",
            call,
            code,
        )

    def _command(self, page_count: int) -> str:
        # The sysctl is about huge pages of the default size, which a boot option may have made 1 GiB.
        if "Hugepagesize:2048kB" in self._meminfo.read_text().replace(" ", ""):
            return f"sysctl -w vm.nr_hugepages={page_count}"
        return f"echo {page_count} > {self._pool / 'nr_hugepages'}"

    def _count(self, name: str) -> int:
        return int(os_call("open", (self._pool / name).read_text))


def no_huge_pages(why: str, call: str = "") -> DriverError:
    return DriverError(f"this kernel has no huge pages of 2 MiB ({why}): leave out --huge-pages", call)
