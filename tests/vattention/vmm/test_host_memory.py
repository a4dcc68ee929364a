"""Available memory, on /proc and cgroup trees made for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from vatt.errors import OutOfMemory
from vattention.vmm.host_memory import HostMemory

MIB, GIB = 1 << 20, 1 << 30


class Machine:
    """A / with 64 GiB of memory, 32 of them available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meminfo(64 * GIB, 32 * GIB)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def meminfo(self, total_bytes: int, available_bytes: int) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal: {total_bytes >> 10} kB\nMemFree: 1 kB\nMemAvailable: {available_bytes >> 10} kB\nHuge: 0\n",
        )

    def v2(self, path: str, current: int, inactive_file: int = 0, maximum: str = "max", high: str = "max") -> None:
        level = f"sys/fs/cgroup/{path}"
        self.write(f"{level}/memory.max", f"{maximum}\n")
        self.write(f"{level}/memory.high", f"{high}\n")
        self.write(f"{level}/memory.current", f"{current}\n")
        self.write(f"{level}/memory.stat", f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")

    def v1(self, path: str, limit: int, usage: int, inactive_file: int = 0) -> None:
        level = f"sys/fs/cgroup/memory/{path}"
        self.write(f"{level}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{level}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{level}/memory.stat", f"inactive_file 1\ntotal_inactive_file {inactive_file}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_what_the_kernel_calls_available(machine: Machine) -> None:
    room = HostMemory(machine.root).read()
    assert (room.total_bytes, room.available_bytes) == (64 * GIB, 32 * GIB)
    assert "MemAvailable" in room.limit


def test_a_v2_limit_counts_with_file_cache_as_available(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/pods/engine\n")
    machine.v2("pods/engine", current=6 * GIB, inactive_file=GIB, maximum=str(8 * GIB))
    room = HostMemory(machine.root).read()
    assert (room.total_bytes, room.available_bytes) == (8 * GIB, 3 * GIB)
    assert room.limit.endswith("pods/engine/memory.max")


def test_the_tightest_level_up_the_tree_holds(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/a/b/c\n")
    machine.v2("a/b/c", current=GIB, maximum=str(8 * GIB))
    machine.v2("a/b", current=3 * GIB)
    machine.v2("a", current=15 * GIB, maximum=str(20 * GIB), high=str(16 * GIB))
    room = HostMemory(machine.root).read()
    assert (room.total_bytes, room.available_bytes) == (8 * GIB, GIB)
    assert room.limit.endswith("a/memory.high")


def test_usage_above_a_soft_limit_is_less_than_nothing(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/a\n")
    machine.v2("a", current=5 * GIB, high=str(4 * GIB))
    assert HostMemory(machine.root).read().available_bytes == -GIB


def test_v1_limits_hold_too_and_its_huge_number_is_none(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n")
    machine.v1("job", limit=4 * GIB, usage=3 * GIB, inactive_file=512 * MIB)
    machine.v1("", limit=0x7FFFFFFFFFFFF000, usage=40 * GIB)
    room = HostMemory(machine.root).read()
    assert (room.total_bytes, room.available_bytes) == (4 * GIB, GIB + 512 * MIB)


def test_a_container_whose_path_is_the_hosts_is_held_by_the_top_of_its_mount(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/../../kubepods/pod7\n")
    machine.v2("", current=GIB, maximum=str(2 * GIB))
    assert HostMemory(machine.root).read().available_bytes == GIB


def test_beside_v1_the_v2_tree_is_one_level_down(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/\n0::/job\n")
    machine.v1("", limit=0x7FFFFFFFFFFFF000, usage=0)
    machine.v2("unified/job", current=0, maximum=str(GIB))
    assert HostMemory(machine.root).read().total_bytes == GIB


def test_the_headroom_is_256_mib_or_2_percent_unless_told(machine: Machine) -> None:
    memory = HostMemory(machine.root)
    assert memory.headroom_of(GIB) == 256 * MIB
    assert memory.headroom_of(100 * GIB) == 2 * GIB
    assert HostMemory(machine.root, headroom_bytes=7).headroom_of(GIB) == 7


def test_what_would_eat_into_the_headroom_is_refused(machine: Machine) -> None:
    machine.meminfo(64 * GIB, 3 * GIB)
    memory = HostMemory(machine.root, headroom_bytes=GIB)
    memory.require(2 * GIB)
    with pytest.raises(OutOfMemory, match="kept as headroom"):
        memory.require(2 * GIB + 1)


def test_one_reading_is_good_for_a_quarter_of_the_headroom(machine: Machine) -> None:
    memory = HostMemory(machine.root, headroom_bytes=400 * MIB)
    memory.require(MIB)
    machine.meminfo(64 * GIB, 0)  # somebody took all the rest
    for _ in range(100):
        memory.require(MIB)
    with pytest.raises(OutOfMemory):
        memory.require(MIB)
