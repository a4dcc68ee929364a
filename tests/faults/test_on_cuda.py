"""The same tests on the CUDA drivers, in children of this test run: libcuda, once loaded, stays in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import MIB, World

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["test_drivers.py", "test_pool.py", "test_client.py"])
def test_every_call_into_libcuda_may_fail(name: str) -> None:
    run_in_a_world([sys.executable, "-m", "pytest", "-q", "--timeout=60", "-p", "no:cacheprovider", str(HERE / name)])


def test_a_device_may_be_lost_at_every_call_into_libcuda() -> None:
    assert int(run_in_a_world([sys.executable, "-m", "tests.faults.lost_device"]).split()[-1]) > 100


def run_in_a_world(command: list[str]) -> str:
    """What the command printed, after which nothing is left in the world and nothing was misused."""
    with World(memory_bytes=2048 * MIB, context_bytes=64 * MIB) as world:
        child = subprocess.run(
            command,
            cwd=HERE.parents[1],
            env={**os.environ, **world.env(), "VATTD_TEST_CUDA": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert child.returncode == 0, f"\n{child.stdout}{child.stderr}"
        assert not {name: count for name, count in world.counters().items() if count.refused}
        assert world.allocation_count() == 0
        assert world.used_bytes() == 0
    return child.stdout
