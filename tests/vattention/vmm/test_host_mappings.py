"""What the host's mapping driver owes the kernel: few mappings, sealed slabs, nothing left after a failure."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vattention.vmm.rig import KIB, Rig, mapping_count
from vatt.errors import DriverError, SystemLimit
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import HandleKind, Placement, libc
from vattention.vmm.host_mapping import HostMapping
from vattention.vmm.limits import MappingBudget

PAGE = 64 * KIB


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig.open(PAGE)
    yield rig
    rig.close()


def vma_flags(address: int) -> list[str]:
    """The kernel's flags of the mapping that starts at an address."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(line for line in lines if line.startswith("VmFlags:")).split()
    raise AssertionError(f"no mapping starts at {address:#x}")


def test_neighbours_mapped_in_separate_calls_become_one_kernel_mapping(rig: Rig) -> None:
    rig.lend(Extent(0, 256))
    address = rig.mapping.reserve(1024 * PAGE)
    before = mapping_count()
    for page_id in range(256):
        rig.mapping.map(address + (256 + page_id) * PAGE, [Extent(page_id, 1)])
    assert mapping_count() <= before + 2
    for page_id in range(256):
        rig.mapping.unmap(address + (256 + page_id) * PAGE, PAGE)
    assert mapping_count() <= before


def test_kernel_mappings_are_as_many_as_runs_not_pages(rig: Rig) -> None:
    rig.lend(Extent(0, 4096))
    address = rig.mapping.reserve(4096 * PAGE)
    before = mapping_count()
    # 64 columns of 64 pages, in an order in which no column adjoins the next in its slab
    columns = [Extent(column * 64, 64) for column in range(64)]
    rig.mapping.map(address, columns[::2] + columns[1::2])
    assert mapping_count() <= before + 64 + 2
    rig.mapping.unmap(address, 4096 * PAGE)
    assert mapping_count() <= before + 2


def test_extents_that_follow_each_other_are_mapped_by_one_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.lend(Extent(0, 12), Extent(ZONE_PAGES, 2))
    address = rig.mapping.reserve(14 * PAGE)
    mapped = []
    real = libc.mmap

    def record(at: int, size_bytes: int, *rest: int) -> int:
        mapped.append(size_bytes // PAGE)
        return real(at, size_bytes, *rest)

    monkeypatch.setattr(libc, "mmap", record)
    rig.mapping.map(address, [Extent(0, 4), Extent(4, 2), Extent(8, 4), Extent(ZONE_PAGES, 2), Extent(6, 2)])
    assert mapped == [6, 4, 2, 2]


def test_a_forked_child_does_not_inherit_mapped_pages(rig: Rig) -> None:
    address = rig.map_new([Extent(0, 1), Extent(7, 1)])
    assert "dc" in vma_flags(address)
    assert "dc" in vma_flags(address + PAGE)


def test_an_address_range_is_trimmed_to_what_was_asked_for() -> None:
    size_bytes = 2 << 20
    mapping = HostMapping(size_bytes)
    before = virtual_bytes()
    address = mapping.reserve(16 * size_bytes)
    assert virtual_bytes() - before == 16 * size_bytes
    mapping.free(address, 16 * size_bytes)
    assert virtual_bytes() == before


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_a_map_that_the_kernel_refuses_half_way_leaves_the_range_empty(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    rig.lend(Extent(0, 6))
    address = rig.mapping.reserve(8 * PAGE)
    rig.mapping.map(address + 7 * PAGE, [Extent(5, 1)])
    rig.paint(address + 7 * PAGE, [5])
    before = mapping_count()
    real, calls = libc.mmap, iter(range(1, 100))

    def fail(*arguments: int) -> int:
        if next(calls) == failing_call:
            raise OSError(12, "mmap: Cannot allocate memory")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(libc, "mmap", fail)
        with pytest.raises(SystemLimit, match="max_map_count"):
            rig.mapping.map(address, [Extent(0, 1), Extent(2, 1), Extent(4, 1)])
    assert mapping_count() == before
    assert rig.painted(address + 7 * PAGE, [5])
    rig.mapping.map(address, [Extent(0, 5)])


def test_mapping_stops_before_the_kernels_limit_and_unmapping_makes_room(rig: Rig, tmp_path: Path) -> None:
    mapping = HostMapping(PAGE, budget_of(tmp_path, limit=mapping_count() + 200, spare=100))
    rig.physical.create(Extent(0, 400))
    rig.share(Extent(0, 400), to=mapping)
    address = mapping.reserve(400 * PAGE)
    mapped = 0

    def map_every_other() -> None:
        nonlocal mapped
        while True:
            mapping.map(address + 2 * mapped * PAGE, [Extent(2 * mapped, 1)])
            mapped += 1

    with pytest.raises(SystemLimit, match=r"sysctl -w vm.max_map_count="):
        map_every_other()
    assert 40 <= mapped <= 51  # each page in the middle of nothing costs two mappings
    for place in range(mapped):
        mapping.unmap(address + 2 * place * PAGE, PAGE)
    for place in range(400):
        mapping.map(address + place * PAGE, [Extent(place, 1)])
    mapping.close()


def budget_of(root: Path, limit: int, spare: int) -> MappingBudget:
    """This process's mappings under a limit of the test's own."""
    (root / "sys" / "vm").mkdir(parents=True)
    (root / "sys" / "vm" / "max_map_count").write_text(f"{limit}\n")
    (root / "self").symlink_to("/proc/self")
    return MappingBudget(root, spare)


def sealed(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


@pytest.mark.parametrize(
    ("size_bytes", "prepare", "complaint"),
    [
        (4 * PAGE, lambda fd: None, "not sealed"),
        (4 * PAGE - 1, sealed, "the pages end at"),
    ],
)
def test_a_slab_that_could_end_under_us_is_refused(
    size_bytes: int, prepare: Callable[[int], None], complaint: str
) -> None:
    mapping = HostMapping(PAGE)
    fd = os.memfd_create("peer", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        prepare(fd)
        with pytest.raises(DriverError, match=complaint):
            mapping.import_pages(Extent(2, 2), Placement(HandleKind.SLAB_FD, PAGE, 2 * PAGE), [fd])
    finally:
        os.close(fd)
    assert mapping.missing_fds(Extent(2, 2)) == [2]


def test_later_imports_from_a_slab_are_held_to_its_end_too() -> None:
    mapping = HostMapping(PAGE)
    fd = os.memfd_create("peer", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4 * PAGE)
        sealed(fd)
        mapping.import_pages(Extent(0, 4), Placement(HandleKind.SLAB_FD, PAGE, 0), [fd])
    finally:
        os.close(fd)
    with pytest.raises(DriverError, match="the pages end at"):
        mapping.import_pages(Extent(4, 1), Placement(HandleKind.SLAB_FD, PAGE, 4 * PAGE), [])
    mapping.close()


def test_a_file_that_is_no_memfd_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(PAGE)
        with pytest.raises(DriverError, match="no memfd"):
            HostMapping(PAGE).import_pages(Extent(0, 1), Placement(HandleKind.SLAB_FD, PAGE, 0), [file.fileno()])


def test_the_slabs_descriptor_is_asked_for_once_a_zone_and_kept_while_pages_are(rig: Rig) -> None:
    rig.physical.create(Extent(0, 4))
    rig.physical.create(Extent(ZONE_PAGES, 1))
    before = len(os.listdir("/proc/self/fd"))
    assert rig.mapping.missing_fds(Extent(1, 3)) == [1]
    rig.share(Extent(1, 3))
    assert rig.mapping.missing_fds(Extent(0, 1)) == []
    assert rig.mapping.missing_fds(Extent(ZONE_PAGES, 1)) == [ZONE_PAGES]
    rig.share(Extent(0, 1))
    rig.mapping.release(Extent(0, 2))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    rig.mapping.release(Extent(2, 2))
    assert len(os.listdir("/proc/self/fd")) == before
    assert rig.mapping.missing_fds(Extent(0, 1)) == [0]
