"""What a page costs in driver calls, counted by the simulated driver under the real cuda-python."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest

from tests.cudasim import World
from tests.daemon import Vattd, run_command
from tests.e2e.cycles import CYCLES, RUN_PAGES
from tests.raw_engine import RawEngine

POOL_PAGES = 64
MIB = 1 << 20


def test_in_steady_state_a_page_costs_one_map_one_unmap_and_its_run_one_set_access() -> None:
    pool = ["--pool-max", f"{2 * POOL_PAGES}MiB"]
    with World(memory_bytes=1024 * MIB) as world, Vattd(*pool, device="0", env=world.env()) as vattd:
        command = [sys.executable, "-m", "tests.e2e.cycles", str(vattd.socket_dir), str(POOL_PAGES)]
        environment = os.environ | world.env()
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as engine:
            assert engine.stdin is not None
            assert engine.stdout is not None
            assert engine.stdout.readline() == "ready\n"
            before = world.counters()
            engine.stdin.write("go\n")
            engine.stdin.flush()
            assert engine.stdout.readline() == "ready\n"
            after = world.counters()
            used = {name: after[name].calls - before[name].calls for name in after}
            print({name: round(count / CYCLES / RUN_PAGES, 3) for name, count in used.items() if count}, "a page")
            assert used["cuMemCreate"] == 0
            assert used["cuMemMap"] == CYCLES * RUN_PAGES
            assert used["cuMemSetAccess"] == CYCLES
            assert used["cuMemUnmap"] == CYCLES, "one call unmaps a whole run"
            assert used["cuMemsetD8"] == 0, "a tenant's own pages need no scrub"
            engine.kill()
        while vattd.status().sessions:
            assert vattd.process.poll() is None
        assert vattd.stop() == 0
        assert world.refused() == 0
        assert world.allocation_count() == 0
        assert world.used_bytes() == 0


def test_two_daemons_cannot_own_one_gpu_even_from_two_socket_directories() -> None:
    with World(memory_bytes=1024 * MIB) as world, Vattd(device="0", env=world.env()) as first:
        with pytest.raises(RuntimeError, match="runs already"):
            Vattd(device="0", env=world.env())
        assert first.status().device.uuid == f"GPU-{world.uuids[0]}"


def test_the_first_scrub_makes_a_context_and_what_it_takes_is_shown() -> None:
    with World(memory_bytes=1024 * MIB, context_bytes=300 * MIB) as world:
        arguments = ["--pool-max", "64MiB", "--headroom", "0", "--metrics-address", "127.0.0.1:0"]
        with Vattd(*arguments, device="0", env=world.env()) as vattd, RawEngine(vattd.sockets) as engine:
            assert vattd.status().pool.context_bytes == 0
            runs = engine.lease(4)
            assert vattd.status().pool.context_bytes == 300 * MIB
            with urllib.request.urlopen(vattd.ready["metrics"], timeout=10) as answer:
                figures = dict(line.split() for line in answer.read().decode().splitlines() if line.count(" ") == 1)
            assert float(figures["vattd_context_bytes"]) == 300 * MIB
            status = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)], world.env())
            assert "scrub cross-tenant; its CUDA context takes 300 MiB" in " ".join(status.stdout.split())
            engine.give_back(runs)
            engine.detach()
        assert world.counters()["cuDevicePrimaryCtxRetain"].calls == 1


def test_an_idle_daemon_has_no_context_on_its_gpu() -> None:
    with World(memory_bytes=1024 * MIB) as world, Vattd(device="0", env=world.env()) as vattd:
        assert vattd.status().memory.total_bytes == 1024 * MIB
        assert world.counters()["cuDevicePrimaryCtxRetain"].calls == 0
        assert world.used_bytes() == 0
