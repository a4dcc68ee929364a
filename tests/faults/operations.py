"""What both halves of a driver do, each as a step that can be made to fail and then tried again.

An operation is a context: inside, everything is ready and `act` has not been called; on the way out all is taken back,
`act` having succeeded once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.vattention.vmm.rig import Rig
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import open_mapping, open_physical

Act = Callable[[], object]
Operation = Callable[[Rig], AbstractContextManager[Act]]

OTHER_ZONE = 5
RUNS = [Extent(0, 2), Extent(4, 1)]  # two runs: not one call on the host


@contextmanager
def lent(rig: Rig) -> Iterator[None]:
    """The pages of RUNS are created and imported."""
    rig.lend(*RUNS)
    yield
    for extent in RUNS:
        rig.mapping.release(extent)
        rig.physical.destroy(extent)


@contextmanager
def opening_the_physical_half(rig: Rig) -> Iterator[Act]:
    spec = "host" if rig.physical.device.backend == "host" else "0"
    yield lambda: open_physical(spec, rig.page).close()


@contextmanager
def creating(rig: Rig) -> Iterator[Act]:
    extent = Extent(OTHER_ZONE * ZONE_PAGES, 3)  # on the host, with a new slab
    yield lambda: rig.physical.create(extent)
    rig.physical.destroy(extent)
    rig.physical.drop_zone(OTHER_ZONE)


@contextmanager
def scrubbing(rig: Rig) -> Iterator[Act]:
    extent = Extent(0, 3)
    rig.physical.create(extent)
    rig.physical.scrub(extent)  # the first one makes a context, which stays
    yield lambda: rig.physical.scrub(extent)
    rig.physical.destroy(extent)


@contextmanager
def exporting(rig: Rig) -> Iterator[Act]:
    rig.physical.create(Extent(0, 1))
    yield lambda: os.close(rig.physical.export(0))
    rig.physical.destroy(Extent(0, 1))


@contextmanager
def asking_for_memory(rig: Rig) -> Iterator[Act]:
    rig.physical.create(Extent(0, 1))
    yield rig.physical.memory
    rig.physical.destroy(Extent(0, 1))


@contextmanager
def opening_the_mapping_half(rig: Rig) -> Iterator[Act]:
    device = rig.mapping.device
    yield lambda: open_mapping(device.backend, device.uuid, rig.page).close()


@contextmanager
def reserving(rig: Rig) -> Iterator[Act]:
    reserved: list[int] = []
    size_bytes = 8 * rig.page
    yield lambda: reserved.append(rig.mapping.reserve(size_bytes))
    for address in reserved:
        rig.mapping.free(address, size_bytes)


@contextmanager
def freeing(rig: Rig) -> Iterator[Act]:
    address = rig.mapping.reserve(8 * rig.page)
    yield lambda: rig.mapping.free(address, 8 * rig.page)


@contextmanager
def importing(rig: Rig) -> Iterator[Act]:
    extent = Extent(0, 3)
    rig.physical.create(extent)
    fds = [rig.physical.export(page_id) for page_id in rig.mapping.missing_fds(extent)]
    yield lambda: rig.mapping.import_pages(extent, rig.physical.placement(extent), fds)
    for fd in fds:
        os.close(fd)
    rig.mapping.release(extent)
    rig.physical.destroy(extent)


@contextmanager
def naming_zones(rig: Rig) -> Iterator[Act]:
    def act() -> None:
        for fd in rig.mapping.zone_fds().values():
            os.close(fd)

    with lent(rig):
        yield act


@contextmanager
def mapping(rig: Rig) -> Iterator[Act]:
    with lent(rig):
        address = rig.mapping.reserve(8 * rig.page)
        yield lambda: rig.mapping.map(address + rig.page, RUNS)
        rig.mapping.unmap(address + rig.page, 3 * rig.page)
        rig.mapping.free(address, 8 * rig.page)


@contextmanager
def unmapping(rig: Rig) -> Iterator[Act]:
    with lent(rig):
        address = rig.mapping.reserve(8 * rig.page)
        rig.mapping.map(address, RUNS)
        yield lambda: rig.mapping.unmap(address, 3 * rig.page)
        rig.mapping.free(address, 8 * rig.page)


@contextmanager
def destroying(rig: Rig) -> Iterator[Act]:
    rig.physical.create(Extent(0, 3))
    yield lambda: rig.physical.destroy(Extent(0, 3))


@contextmanager
def releasing(rig: Rig) -> Iterator[Act]:
    rig.lend(Extent(0, 3))
    yield lambda: rig.mapping.release(Extent(0, 3))
    rig.physical.destroy(Extent(0, 3))


ALL_OR_NOTHING: list[Operation] = [
    opening_the_physical_half,
    creating,
    scrubbing,
    exporting,
    asking_for_memory,
    opening_the_mapping_half,
    reserving,
    freeing,
    importing,
    naming_zones,
    mapping,
    unmapping,
]


def name_of(operation: object) -> str:
    return str(getattr(operation, "__name__", operation))
