"""Slabs: what the kernel holds for created pages, and what is left when creating fails."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vattention.vmm.rig import KIB, MIB, Rig
from vatt.errors import DriverError, InvalidRequest, OutOfMemory
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import libc, open_mapping, open_physical
from vattention.vmm.extent_set import ExtentSet
from vattention.vmm.host_memory import HostMemory
from vattention.vmm.host_physical import MAX_PAGE_SIZE_BYTES, HostPhysical
from vattention.vmm.host_slabs import SmallSlabs


@pytest.fixture
def driver() -> Iterator[HostPhysical]:
    driver = HostPhysical(64 * KIB)
    yield driver
    driver.close()


@pytest.mark.parametrize("size_bytes", [0, 1, 2 * KIB, 96 * KIB, 8 * MIB])
def test_page_sizes_are_powers_of_two_from_the_systems_to_4_mib(size_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match="power of two"):
        open_physical("host", size_bytes)
    with pytest.raises(InvalidRequest, match="power of two"):
        open_mapping("host", "host", size_bytes)


def test_the_last_page_of_a_zone_is_within_its_slab_at_every_page_size() -> None:
    for size_bytes in (4 * KIB, MAX_PAGE_SIZE_BYTES):
        driver = HostPhysical(size_bytes)
        driver.create(Extent(ZONE_PAGES - 1, 1))
        assert driver.memory().pages_bytes == size_bytes
        driver.close()


def test_a_slab_is_sealed_and_named(driver: HostPhysical) -> None:
    driver.create(Extent(0, 1))
    fd = driver.export(0)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:vattd-slab (deleted)"
        for size_bytes in (0, 1 << 62):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def test_each_zone_has_its_own_slab(driver: HostPhysical) -> None:
    fds = []
    for extent in (Extent(0, 1), Extent(5, 1), Extent(ZONE_PAGES, 1)):
        driver.create(extent)
        fds.append(driver.export(extent.first))
    inodes = [os.fstat(fd).st_ino for fd in fds]
    for fd in fds:
        os.close(fd)
    assert inodes[0] == inodes[1] != inodes[2]


def test_an_empty_zone_can_be_forgotten_and_begun_anew(driver: HostPhysical) -> None:
    driver.create(Extent(ZONE_PAGES, 2))
    with pytest.raises(DriverError, match="has created pages"):
        driver.drop_zone(1)
    driver.destroy(Extent(ZONE_PAGES, 2))
    open_before = len(os.listdir("/proc/self/fd"))
    driver.drop_zone(1)
    driver.drop_zone(1)
    driver.drop_zone(77)
    assert len(os.listdir("/proc/self/fd")) == open_before - 1
    driver.create(Extent(ZONE_PAGES, 2))


def test_a_zone_that_was_adopted_is_like_any_other_once_it_was_forgotten(driver: HostPhysical) -> None:
    """In an adopted slab memory where no page is may be held; in one's own it is a stray, and goes."""
    earlier = HostPhysical(driver.page_size_bytes)
    earlier.create(Extent(ZONE_PAGES, 1))
    mark, slab = earlier.zone_mark(1), earlier.export(ZONE_PAGES)
    assert mark is not None
    driver.adopt_zone(1, slab, mark)
    os.close(slab)
    earlier.close()
    driver.drop_zone(1)
    driver.create(Extent(ZONE_PAGES, 1))
    slab = driver.export(ZONE_PAGES)
    os.pwrite(slab, b"stray", 7 * driver.page_size_bytes)
    driver.destroy(Extent(ZONE_PAGES, 1))
    assert os.fstat(slab).st_blocks == 0
    os.close(slab)


@pytest.mark.parametrize("failing_step", [1, 2, 3])
def test_a_create_that_the_kernel_refuses_half_way_keeps_nothing(
    driver: HostPhysical, monkeypatch: pytest.MonkeyPatch, failing_step: int
) -> None:
    driver.create(Extent(4096, 1))
    real, steps = libc.fallocate, iter(range(1, 100))

    def fail(fd: int, mode: int, offset_bytes: int, size_bytes: int) -> None:
        if mode == 0 and next(steps) == failing_step:
            raise OSError(errno.ENOSPC, "fallocate: No space left on device")
        real(fd, mode, offset_bytes, size_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(libc, "fallocate", fail)
        with pytest.raises(OutOfMemory, match="ENOSPC"):
            driver.create(Extent(0, 2100))  # 131 MiB, in three steps
    assert driver.memory().pages_bytes == driver.page_size_bytes
    with pytest.raises(DriverError):
        driver.destroy(Extent(0, 1))
    driver.create(Extent(0, 1))


def test_a_failed_first_create_of_a_zone_leaves_no_slab(driver: HostPhysical, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, mode: int, offset_bytes: int, size_bytes: int) -> None:
        if mode == 0:
            raise OSError(errno.ENOMEM, "fallocate: Cannot allocate memory")

    open_before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(libc, "fallocate", fail)
        with pytest.raises(OutOfMemory):
            driver.create(Extent(0, 1))
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_creating_stops_at_the_headroom(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 1048576 kB\nMemFree: 1 kB\nMemAvailable: 4096 kB\n")
    driver = HostPhysical(64 * KIB, SmallSlabs(HostMemory(tmp_path, headroom_bytes=3 * MIB)))
    with pytest.raises(OutOfMemory, match=r"1114112 bytes are wanted, 4194304 are available .* 3145728 .* headroom"):
        driver.create(Extent(0, 17))
    assert driver.memory().pages_bytes == 0
    driver.create(Extent(0, 16))
    assert driver.memory().free_bytes == MIB
    driver.close()


def test_a_scrub_keeps_the_memory_committed_while_pages_are_mapped() -> None:
    rig = Rig.open(64 * KIB)
    address = rig.map_new([Extent(0, 100)])  # more than one write's worth of zeros
    for place in range(100):
        rig.bytes.write(address + place * rig.page, b"secret")
    before = rig.physical.memory().pages_bytes
    rig.physical.scrub(Extent(1, 98))
    assert rig.physical.memory().pages_bytes == before
    assert rig.bytes.read(address, 6) == b"secret"
    assert rig.is_zero(address + rig.page, 98)
    assert rig.bytes.read(address + 99 * rig.page, 6) == b"secret"
    rig.close()


def fragmented(page_count: int) -> HostPhysical:
    """Every other page of so many is created; but for pages 1 to 3, which are in one run."""
    driver = HostPhysical(4 * KIB)
    driver.create(Extent(0, page_count))
    for page_id in range(4, page_count, 2):
        driver.destroy(Extent(page_id, 1))
    driver.destroy(Extent(0, 1))
    return driver


@pytest.fixture
def punched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where holes are punched, in bytes."""
    offsets: list[int] = []
    real = libc.punch

    def punch(fd: int, offset_bytes: int, size_bytes: int) -> None:
        offsets.append(offset_bytes)
        real(fd, offset_bytes, size_bytes)

    monkeypatch.setattr(libc, "punch", punch)
    return offsets


def test_destroying_a_page_looks_at_no_other_unless_there_are_strays(
    punched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = fragmented(2000)
    monkeypatch.setattr(ExtentSet, "gaps", lambda self, extent: pytest.fail("it goes through the fragments"))
    punched.clear()
    driver.destroy(Extent(2, 1))
    assert punched == [2 * driver.page_size_bytes]
    driver.close()


def test_strays_go_some_at_a_time_wherever_they_are(punched: list[int]) -> None:
    page_count = 2000
    driver = fragmented(page_count)
    slab = driver.export(1)
    strays = (4, 1000, page_count - 2, page_count + 50, ZONE_PAGES - 1)
    for page_id in strays:
        os.pwrite(slab, b"stray", page_id * driver.page_size_bytes)
    punched.clear()
    created = page_count // 2 + 1
    for round_ in range(1, created):
        driver.destroy(Extent(1, 1))
        driver.create(Extent(1, 1))
        assert len(punched) <= round_ * (1 + 32)
        if driver.memory().pages_bytes == created * driver.page_size_bytes:
            break
    else:
        pytest.fail("some strays are never found")
    punched.clear()
    driver.destroy(Extent(1, 1))
    assert punched == [driver.page_size_bytes]
    os.close(slab)
    driver.close()
