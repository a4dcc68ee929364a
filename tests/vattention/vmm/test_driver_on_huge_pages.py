"""The host drivers on huge pages, where this machine has set enough aside; the contract runs in a child of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vatt.errors import DriverError, OutOfMemory
from vattention.vmm.huge_memory import HUGE_PAGE_BYTES, HugeMemory

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CONTRACT = [
    "test_physical_contract.py",
    "test_mapping_contract.py",
    "test_driver_machine.py",
    "test_two_processes.py",
    "huge_only.py",
]
# The contract's largest test has 75 pages of 4 MiB.
WANTED_PAGES = 160


def free_pages() -> int:
    try:
        return HugeMemory().read().available_bytes // HUGE_PAGE_BYTES
    except (DriverError, OutOfMemory):
        return 0


@pytest.mark.skipif(
    free_pages() < WANTED_PAGES,
    reason=f"too few huge pages are free: sysctl -w vm.nr_hugepages={WANTED_PAGES}",
)
def test_the_host_drivers_keep_the_contract_on_huge_pages_and_give_all_of_them_back() -> None:
    before = HugeMemory().read()
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in CONTRACT)],
        cwd=ROOT,
        env={**os.environ, "VATTD_TEST_HUGE_PAGES": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert child.returncode == 0, f"\n{child.stdout}{child.stderr}"
    assert HugeMemory().read() == before
