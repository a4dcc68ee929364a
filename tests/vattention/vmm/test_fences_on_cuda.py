"""The fences of a GPU, in children of this test run: libcuda, once loaded, stays in a process for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import MIB, World
from tests.cudasim.processes import run

HERE = Path(__file__).parent


def test_the_fences_keep_pages_mapped_while_kernels_use_them() -> None:
    with World(memory_bytes=448 * MIB, context_bytes=64 * MIB) as world:
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "cuda_fences.py")],
            cwd=HERE.parents[2],
            env={**os.environ, **world.env(), "VATTD_TEST_CUDA": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert child.returncode == 0, f"\n{child.stdout}{child.stderr}"
        assert not {name: count for name, count in world.counters().items() if count.refused}
        assert (world.allocation_count(), world.used_bytes()) == (0, 0)


SETUP = """
from kernel import *
from vattention.vmm.cuda_event import ContextFence
ok(cu.cuInit(0)); enter_context()
r = reserve(PAGE); attach(r, create())
fence = ContextFence(0)
launch(int(ok(cu.cuStreamCreate(1))), Reads(r, PAGE), duration_s={duration_s})
"""


def test_an_old_drivers_fence_waits_for_the_whole_context() -> None:
    with World() as world:
        snippet = (
            "proof = fence(); assert not proof.done(); proof.wait(); assert proof.done(); ok(cu.cuMemUnmap(r, PAGE))"
        )
        done = run(world, SETUP.format(duration_s=0.2) + snippet, CUDASIM_WITHOUT="cuCtxRecordEvent")
        assert done.lines == []
        counts = world.counters()
        assert (counts["cuCtxRecordEvent"].calls, counts["cuCtxSynchronize"].calls, world.refused()) == (0, 1, 0)


@pytest.mark.parametrize("neglect", ["fence()", "assert not fence().done()"])
def test_a_proof_that_nobody_waits_for_proves_nothing(neglect: str) -> None:
    with World() as world:
        outcome = run(world, SETUP.format(duration_s=1e6) + f"{neglect}\ncu.cuMemUnmap(r, PAGE)")
        assert outcome.returncode == -6
        assert "Xid 31" in outcome.stderr


def test_a_lost_device_is_raised_and_closing_still_works() -> None:
    snippet = """
from vatt.errors import DeviceLost
proof = fence()
launch(0, Reads(r + PAGE, 8))
for ask in (proof.wait, proof.done, fence):
    try: ask()
    except DeviceLost: say("lost")
fence.close(); del proof
"""
    with World() as world:
        outcome = run(world, SETUP.format(duration_s=1e6) + snippet)
        assert outcome.lines == ["lost"] * 3
        assert "Traceback" not in outcome.stderr


def test_a_forked_child_leaves_the_parents_fence_alone() -> None:
    snippet = """
proof = fence()
pid = os.fork()
if pid == 0:
    fence.close(); del proof
    sys.stderr.flush(); os._exit(0)
os.waitpid(pid, 0)
proof.wait()
ok(cu.cuMemUnmap(r, PAGE))
"""
    with World() as world:
        outcome = run(world, SETUP.format(duration_s=0.05) + snippet)
        assert outcome.lines == []
        assert outcome.stderr == ""
        assert world.refused() == 0
