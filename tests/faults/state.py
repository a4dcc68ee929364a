"""All that a failed call could have left behind, in one value that can be compared."""

from __future__ import annotations

import os
from typing import Any

from tests.cudasim.faults import Faults
from tests.vattention.vmm.rig import ON_CUDA, Rig
from vattention.vmm import MappingDriver, PhysicalDriver
from vattention.vmm.cuda_mapping import CudaMapping
from vattention.vmm.cuda_physical import CudaPhysical
from vattention.vmm.host_mapping import HostMapping
from vattention.vmm.host_physical import HostPhysical


def state_of(rig: Rig) -> dict[str, Any]:
    """Both drivers' tables, and what the kernel or the simulated driver says that this process has."""
    return {
        "physical": physical_state(rig.physical),
        "mapping": mapping_state(rig.mapping),
        "descriptors": open_fds(),
        "kept by the kernel": kept_by_the_kernel(),
    }


def kept_by_the_kernel() -> tuple[int, ...]:
    """References, mappings and reservations in the simulated driver; on the host bytes of slabs and of addresses."""
    if ON_CUDA:
        held = Faults.here().holdings(os.getpid())
        return held.references, held.mappings, held.reservations
    return address_bytes()


def physical_state(driver: PhysicalDriver) -> Any:
    if isinstance(driver, CudaPhysical):
        scrubber = driver._scrubber
        return dict(driver._handles), scrubber is not None and scrubber._mapped_bytes
    assert isinstance(driver, HostPhysical)
    return {
        zone: (list(slab.created._firsts), list(slab.created._ends), os.fstat(slab.fd).st_blocks)
        for zone, slab in driver._slabs.items()
    }


def mapping_state(driver: MappingDriver) -> Any:
    assert isinstance(driver, (CudaMapping, HostMapping))
    table = driver._table
    imported = (list(table._imported._firsts), list(table._imported._ends))
    mapped = {start: table._reservations[start].runs.pages(0, 1 << 40) for start in table._starts}
    counts = (list(table._mapped._bounds), list(table._mapped._counts))
    if isinstance(driver, CudaMapping):
        return imported, mapped, counts, dict(driver._handles)
    return imported, mapped, counts, {zone: slab.page_count for zone, slab in driver._slabs.items()}


def open_fds() -> dict[str, int]:
    """How many descriptors there are of each thing. Numbers say nothing: one may be closed and opened again."""
    found: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            continue
        kind = target.split(":")[0] if target.startswith(("socket:", "pipe:")) else target
        found[kind] = found.get(kind, 0) + 1
    return found


def address_bytes() -> tuple[int, int]:
    """Bytes of addresses that slabs and empty reservations take in this process."""
    slabs = reserved = 0
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, protection, _, _, inode, *name = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if name and "vattd-slab" in name[0]:
                slabs += end - start
            elif not name and inode == "0" and protection == "---p":
                reserved += end - start
    return slabs, reserved
