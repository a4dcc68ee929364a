"""What is measured: on which device, for how many pages at a time, how long, and within which memory."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from vatt.errors import InvalidRequest, OutOfMemory
from vatt.sizes import format_size
from vatt.sockets import Sockets
from vattention.vmm import DeviceMemory, open_physical

PAGE_COUNTS = (1, 16, 64, 512)
# What a CUDA context may take, of which there is one while pages are mapped. Nobody can say before it is made; some
# hundred MB as a rule, and `bench` reports how much it was.
CONTEXT_ROOM_BYTES = 768 << 20


class Part(enum.Enum):
    """What can be measured by itself, in the order in which it is."""

    CALLS = "calls"
    LEASES = "leases"
    STEPS = "steps"


QUICK_S: Mapping[Part, float] = {Part.CALLS: 2.0, Part.LEASES: 1.5, Part.STEPS: 2.5}
DEFAULT_S: Mapping[Part, float] = {Part.CALLS: 25.0, Part.LEASES: 12.0, Part.STEPS: 20.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked against the device, which has room for the most pages that there are at one time."""

    device: str  # as open_physical takes it
    backend: str
    uuid: str
    page_size_bytes: int
    page_counts: Sequence[int]
    parts: Set[Part]
    seconds: Mapping[Part, float]
    attach: Sockets | None = None  # the vattd to lease from; None: a private one
    tenant: str = "bench"

    @property
    def page_budget(self) -> int:
        """The most pages that there are at one time."""
        return max(self.page_counts)

    @property
    def memory_bytes(self) -> int:
        return self.page_budget * self.page_size_bytes


def make_plan(
    device: str,
    *,
    page_size_bytes: int | None,
    memory_bytes: int | None,
    parts: Collection[Part],
    seconds: Mapping[Part, float],
    attach: Sockets | None = None,
    tenant: str = "bench",
) -> Plan:
    """None: the device's default page size; memory for the largest of PAGE_COUNTS.

    Raises DeviceNotFound and DriverError where there is no such device, InvalidRequest for a page size that it cannot
    have or that the memory does not hold, OutOfMemory with what to type where it has too little free.
    """
    driver = open_physical(device, page_size_bytes)
    try:
        page, facts, memory = driver.page_size_bytes, driver.device, driver.memory()
    finally:
        driver.close()
    counts = [count for count in PAGE_COUNTS if memory_bytes is None or count * page <= memory_bytes]
    if not counts:
        raise InvalidRequest(f"--memory: less than a page, which has {format_size(page)} here")
    makes_pages = attach is None or Part.CALLS in parts  # else they are that vattd's
    pages_bytes = max(counts) * page if makes_pages else 0
    _check_free(pages_bytes, page, memory, CONTEXT_ROOM_BYTES if facts.backend == "cuda" else 0)
    return Plan(device, facts.backend, facts.uuid, page, counts, frozenset(parts), seconds, attach, tenant)


def _check_free(pages_bytes: int, page_size_bytes: int, memory: DeviceMemory, room_bytes: int) -> None:
    if pages_bytes + room_bytes <= memory.free_bytes:
        return
    beside = f", and {format_size(room_bytes)} for a CUDA context" if room_bytes else ""
    could_bytes = memory.free_bytes - room_bytes
    typed = f"{could_bytes >> 20}MiB" if could_bytes >> 20 << 20 >= page_size_bytes else f"{could_bytes >> 10}KiB"
    hint = f"give --memory {typed}, or free some" if could_bytes >= page_size_bytes else "free some"
    free = format_size(memory.free_bytes)
    raise OutOfMemory(f"{format_size(pages_bytes)} of pages are wanted{beside}, and {free} are free: {hint}")
