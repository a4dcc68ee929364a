"""What the drivers' calls cost: pages created, exported, imported, mapped, unmapped and let go of, over and over.

Both halves of the device are in this process, without the handle socket between them, as the drivers' own classes, so
the calls are just those that vattd and engines make. On a GPU the import is thus by the process that exported, and
under a CUDA context, as an engine has one and vattd, mostly, has none; leases are imported by another process.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vatt.pages import Extent
from vatt.protocol import MAX_FDS_PER_PACKET
from vattctl.bench.stopwatch import CallTimes, Line, PhaseTimes
from vattctl.bench.turns import Tick, turns
from vattention.vmm import MappingDriver, PhysicalDriver, open_mapping, open_physical
from vattention.vmm.call_watch import watched

# Rounds of few pages are short, so that in one turn there are more of them than of many pages.
MOST_ROUNDS_A_TURN = 16
LEAST_TURNS = 3


@dataclass(frozen=True, slots=True)
class Rig:
    """Both halves of one device."""

    physical: PhysicalDriver
    mapping: MappingDriver

    @property
    def page_size_bytes(self) -> int:
        return self.mapping.page_size_bytes


@contextmanager
def rig(device: str, page_size_bytes: int) -> Iterator[Rig]:
    """On the way out both halves let go of whatever they have, also where one of them refuses."""
    with ExitStack() as undo:
        physical = open_physical(device, page_size_bytes)
        undo.callback(physical.close)
        mapping = open_mapping(physical.device.backend, physical.device.uuid, page_size_bytes)
        undo.callback(mapping.close)
        yield Rig(physical, mapping)


def measure_calls(
    device: str, page_size_bytes: int, page_counts: Sequence[int], seconds: float, tick: Tick
) -> list[Line]:
    """Lines of whole phases, and of each driver call in them. All page counts take turns, so that what else the machine
    does meets all of them."""
    phases, calls = PhaseTimes(), CallTimes()
    with rig(device, page_size_bytes) as both, _without_garbage_collection():
        _turn(both, page_counts, phases, calls, 0)
        phases.forget()
        calls.forget()
        for number in turns(seconds, LEAST_TURNS, tick):
            _turn(both, page_counts, phases, calls, number)
    return phases.lines() + calls.lines()


def rounds_a_turn(page_counts: Sequence[int]) -> dict[int, int]:
    return {count: min(MOST_ROUNDS_A_TURN, max(page_counts) // count) for count in page_counts}


def _turn(both: Rig, page_counts: Sequence[int], phases: PhaseTimes, calls: CallTimes, number: int) -> None:
    for page_count, rounds in rounds_a_turn(page_counts).items():
        for place in range(rounds):
            each_first = (number + place) % 2 == 1
            one_round(both, page_count, phases, each_first=each_first)
            with watched(calls.watch):
                one_round(both, page_count, calls, each_first=each_first)


def one_round(both: Rig, page_count: int, times: PhaseTimes | CallTimes, *, each_first: bool) -> None:
    """The whole life of so many pages. What it leaves after a failure, the rig's end takes away."""
    physical, mapping, size_bytes = both.physical, both.mapping, page_count * both.page_size_bytes
    address = times.run("reserve", mapping.reserve, size_bytes)
    times.run("create", physical.create, Extent(0, page_count))
    for first in range(0, page_count, MAX_FDS_PER_PACKET):  # no more travel at once
        extent = Extent(first, min(MAX_FDS_PER_PACKET, page_count - first))
        with ExitStack() as fds:
            exported = times.run("export", _export_all, physical, mapping.missing_fds(extent))
            fds.callback(_close_all, exported)
            times.run("import", mapping.import_pages, extent, physical.placement(extent), exported)
    ways = [_map_as_one] if page_count == 1 else [_map_as_one, _map_each]
    for way in reversed(ways) if each_first else ways:
        way(both, address, page_count, times)
    times.run("release", mapping.release, Extent(0, page_count))
    times.run("destroy", physical.destroy, Extent(0, page_count))
    times.run("free", mapping.free, address, size_bytes)
    times.end_round(page_count)


def _map_as_one(both: Rig, address: int, page_count: int, times: PhaseTimes | CallTimes) -> None:
    times.run("map", both.mapping.map, address, [Extent(0, page_count)])
    times.run("unmap", both.mapping.unmap, address, page_count * both.page_size_bytes)


def _map_each(both: Rig, address: int, page_count: int, times: PhaseTimes | CallTimes) -> None:
    """Page by page, as figures are published, and as a library does that grows by a page at a time."""
    page = both.page_size_bytes
    times.run("map each", _repeat, lambda at: both.mapping.map(address + at * page, [Extent(at, 1)]), page_count)
    times.run("unmap each", _repeat, lambda at: both.mapping.unmap(address + at * page, page), page_count)


def _repeat(step: Callable[[int], object], count: int) -> None:
    for at in range(count):
        step(at)


def _export_all(physical: PhysicalDriver, page_ids: Sequence[int]) -> list[int]:
    with ExitStack() as undo:
        fds: list[int] = []
        undo.callback(_close_all, fds)
        for page_id in page_ids:
            fds.append(physical.export(page_id))
        undo.pop_all()
        return fds


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """As `timeit` does it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
