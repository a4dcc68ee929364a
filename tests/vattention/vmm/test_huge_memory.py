"""The pool of huge pages, on /proc and /sys trees made for the purpose, and a kernel that has none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vatt.errors import DriverError, InvalidRequest, OutOfMemory
from vatt.pages import Extent
from vattention.vmm import libc, open_physical
from vattention.vmm.host_physical import HostPhysical
from vattention.vmm.host_slabs import HugeSlabs
from vattention.vmm.huge_memory import HugeMemory

MIB = 1 << 20


def machine(root: Path, total: int, free: int, reserved: int = 0, default_kib: int = 2048) -> Path:
    """A / with so many huge pages."""
    pool = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True, exist_ok=True)
    for name, count in {"nr": total, "free": free, "resv": reserved}.items():
        (pool / f"{name}_hugepages").write_text(f"{count}\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nHugePages_Total: 7\nHugepagesize:    {default_kib} kB\n")
    return root


def test_what_others_have_reserved_is_not_available(tmp_path: Path) -> None:
    room = HugeMemory(machine(tmp_path, total=100, free=60, reserved=20)).read()
    assert (room.total_bytes, room.available_bytes) == (200 * MIB, 80 * MIB)


def test_a_pool_that_is_too_small_is_refused_with_the_command_that_makes_it_large_enough(tmp_path: Path) -> None:
    memory = HugeMemory(machine(tmp_path, total=100, free=60, reserved=20))
    memory.require(80 * MIB)
    with pytest.raises(OutOfMemory, match=r"sysctl -w vm.nr_hugepages=110"):
        memory.require(100 * MIB)
    with pytest.raises(OutOfMemory, match=r"sysctl -w vm.nr_hugepages=115"):
        HugeMemory(tmp_path, headroom_bytes=10 * MIB).require(100 * MIB)


def test_an_empty_pool_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"no huge pages are set aside: sysctl -w vm.nr_hugepages=512"):
        HugeMemory(machine(tmp_path, total=0, free=0))


def test_where_the_default_size_is_another_the_command_names_the_pool(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"echo 512 > .*/hugepages-2048kB/nr_hugepages"):
        HugeMemory(machine(tmp_path, total=0, free=0, default_kib=1 << 20))


def test_a_kernel_without_a_pool_is_named(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="leave out --huge-pages"):
        HugeMemory(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENODEV])
def test_a_kernel_without_huge_memfds_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(name: str, flags: int) -> int:
        assert flags & os.MFD_HUGETLB
        assert flags & os.MFD_HUGE_2MB == os.MFD_HUGE_2MB
        raise OSError(code, os.strerror(code))

    driver = HostPhysical(2 * MIB, HugeSlabs(HugeMemory(machine(tmp_path, total=9, free=9))))
    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(DriverError, match="leave out --huge-pages"):
        driver.create(Extent(0, 1))
    assert driver.memory().pages_bytes == 0


def test_a_machine_too_short_of_memory_for_the_slab_itself_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    driver = HostPhysical(2 * MIB, HugeSlabs(HugeMemory(machine(tmp_path, total=9, free=9))))
    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutOfMemory, match="memfd_create"):
        driver.create(Extent(0, 1))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_pages_that_others_took_meanwhile_are_out_of_memory_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int, mode: int, offset_bytes: int, size_bytes: int) -> None:
        if mode == 0:
            machine(tmp_path, total=9, free=1)
            raise OSError(code, os.strerror(code))

    driver = HostPhysical(2 * MIB, HugeSlabs(HugeMemory(machine(tmp_path, total=9, free=9))))
    monkeypatch.setattr(libc, "fallocate", refuse)
    with pytest.raises(OutOfMemory, match=rf"fallocate: {errno.errorcode[code]} .* sysctl -w vm.nr_hugepages=11\)"):
        driver.create(Extent(0, 3))
    assert driver.memory().pages_bytes == 0


@pytest.mark.parametrize("device", ["0", "GPU-00000000-0000-0000-0000-000000000000"])
def test_a_gpu_has_no_huge_pages(device: str) -> None:
    with pytest.raises(InvalidRequest, match="--gpu host"):
        open_physical(device, huge_pages=True)
