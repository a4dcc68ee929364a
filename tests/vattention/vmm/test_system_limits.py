"""Limits of the operating system, on /proc trees made for the purpose."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from vatt.errors import SystemLimit
from vattention.handle_socket import room_for_fds
from vattention.vmm.limits import MappingBudget, open_fd_count, raise_nofile_to_hard, require_fds


class FakeMaps:
    """A /proc in which the process has as many mappings as the test says."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        (root / "self").mkdir()
        (root / "sys" / "vm").mkdir(parents=True)
        (root / "sys" / "vm" / "max_map_count").write_text(f"{limit}\n")
        self.has(0)

    def has(self, count: int) -> None:
        (self.root / "self" / "maps").write_text("7f00-7f01 rw-p 00000000 00:00 0\n" * count)


def test_the_maps_are_counted_anew_only_near_the_limit(tmp_path: Path) -> None:
    maps = FakeMaps(tmp_path, limit=1000)
    budget = MappingBudget(tmp_path, spare=100)
    (tmp_path / "self" / "maps").unlink()  # so counting would raise
    for _ in range(9):
        budget.require(100)
    maps.has(500)
    budget.require(100)
    (tmp_path / "self" / "maps").unlink()
    budget.require(300)


def test_a_refusal_names_limit_count_and_command_and_takes_nothing(tmp_path: Path) -> None:
    maps = FakeMaps(tmp_path, limit=1000)
    budget = MappingBudget(tmp_path, spare=100)
    maps.has(890)
    budget.require(900)
    with pytest.raises(SystemLimit, match=r"max_map_count is 1000: .* 890 mappings.*sysctl -w vm.max_map_count=2048"):
        budget.require(11)
    budget.require(10)


def test_a_raised_limit_is_seen_without_a_restart(tmp_path: Path) -> None:
    maps = FakeMaps(tmp_path, limit=1000)
    budget = MappingBudget(tmp_path, spare=100)
    maps.has(900)
    budget.require(900)
    with pytest.raises(SystemLimit):
        budget.require(1)
    (tmp_path / "sys" / "vm" / "max_map_count").write_text("2000\n")
    budget.require(1)


def test_unmapping_is_counted_but_never_refused(tmp_path: Path) -> None:
    maps = FakeMaps(tmp_path, limit=1000)
    budget = MappingBudget(tmp_path, spare=100)
    budget.note(2000)
    maps.has(100)
    budget.require(800)


def test_the_real_count_is_the_number_of_lines() -> None:
    budget = MappingBudget()
    count = budget.count()
    assert 10 < count < budget.limit


def test_open_descriptors_are_counted() -> None:
    before = open_fd_count()
    ends = os.pipe()
    assert open_fd_count() == before + 2
    for fd in ends:
        os.close(fd)


def test_descriptors_are_listed_where_the_kernel_does_not_count_them(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "fd").symlink_to("/sys/kernel/mm")  # a directory of size 0, as /proc/self/fd was before 6.2
    assert open_fd_count(tmp_path) == len(os.listdir("/sys/kernel/mm"))


def test_descriptors_past_the_limit_are_refused_with_the_commands_that_raise_it() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    require_fds(1)
    with pytest.raises(SystemLimit, match=rf"RLIMIT_NOFILE is {soft} .*ulimit -n \d+.*LimitNOFILE="):
        require_fds(soft)


def test_the_soft_limit_can_be_lifted_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        assert raise_nofile_to_hard() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_without_a_descriptor_left_is_told_so_when_limits_are_looked_up() -> None:
    budget = MappingBudget()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(SystemLimit, match="RLIMIT_NOFILE"):
            budget.count()
        with pytest.raises(SystemLimit, match="RLIMIT_NOFILE"):
            room_for_fds()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
