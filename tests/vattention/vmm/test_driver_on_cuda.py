"""The CUDA drivers, in a child of this test run: libcuda, once loaded, stays in a process for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import MIB, World
from vattention.vmm import default_device

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CONTRACT = [
    "test_physical_contract.py",
    "test_mapping_contract.py",
    "test_driver_machine.py",
    "test_two_processes.py",
    "cuda_only.py",
]


def run_on_cuda(env: dict[str, str]) -> None:
    """Run the contract there; its report is this test's message if it fails."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in CONTRACT)],
        cwd=ROOT,
        env={**os.environ, **env, "VATTD_TEST_CUDA": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert child.returncode == 0, f"\n{child.stdout}{child.stderr}"


def test_the_cuda_drivers_keep_the_contract_without_one_refused_call_or_leaked_page() -> None:
    with World(memory_bytes=448 * MIB, context_bytes=64 * MIB, fresh_byte=0xA5) as world:
        run_on_cuda(world.env())
        misused = {name: count for name, count in world.counters().items() if count.refused}
        assert not misused
        assert world.allocation_count() == 0
        assert world.used_bytes() == 0


@pytest.mark.gpu
@pytest.mark.skipif(default_device() == "host", reason="there is no GPU")
def test_the_cuda_drivers_keep_the_contract_on_a_real_gpu() -> None:
    run_on_cuda({})
