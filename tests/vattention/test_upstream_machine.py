"""The machine of upstream_machine.py on the host's memory, and on a simulated GPU in a child of this test run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import MIB, World
from tests.daemon import Vattd
from tests.vattention.upstream_machine import POOL_PAGES, Case, run_machine
from vattention import upstream

HERE = Path(__file__).parent
KIB = 1 << 10


@pytest.mark.parametrize(
    ("page_size_bytes", "multiples"),
    [(64 * KIB, (1, 2)), (128 * KIB, (1,)), (2 * MIB, (1,))],
    ids=["64 and 128 KiB in pages of 64 KiB", "128 KiB", "2 MiB"],
)
def test_no_sequence_of_calls_breaks_the_contract_on_the_host(
    page_size_bytes: int, multiples: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setattr(upstream, "default_device", lambda: "host")
    monkeypatch.delenv("VATTENTION_DAEMON", raising=False)
    pool_bytes = POOL_PAGES * page_size_bytes * max(multiples)
    with Vattd("--page-size", str(page_size_bytes), "--pool-max", str(pool_bytes)) as vattd:
        monkeypatch.setenv("VATTD_SOCKET_DIR", str(vattd.socket_dir))
        case = Case(
            page_size_bytes, multiples, set_layout=lambda layout: monkeypatch.setenv("VATTENTION_LAYOUT", layout)
        )
        run_machine(case, round(5 * pytestconfig.getoption("--seconds")))
        assert not vattd.status().sessions


@pytest.mark.parametrize("page_size_bytes", [64 * KIB, 2 * MIB], ids=["64 KiB", "2 MiB"])
def test_no_sequence_of_calls_breaks_the_contract_on_a_gpu(page_size_bytes: int, pytestconfig: pytest.Config) -> None:
    pool_bytes = POOL_PAGES * max(page_size_bytes, 128 * KIB)
    pool = ("--page-size", str(page_size_bytes), "--pool-max", str(pool_bytes))
    with World(memory_bytes=1024 * MIB, context_bytes=64 * MIB, granularity_bytes=page_size_bytes) as world:
        with Vattd(*pool, device="0", env=world.env()) as vattd:
            seconds = str(pytestconfig.getoption("--seconds"))
            options = ["-q", "-p", "no:cacheprovider", "--seconds", seconds]
            child = subprocess.run(
                [sys.executable, "-m", "pytest", *options, str(HERE / "upstream_on_cuda.py")],
                cwd=HERE.parents[1],
                env={**os.environ, **world.env(), "VATTD_SOCKET_DIR": str(vattd.socket_dir)},
                capture_output=True,
                text=True,
                timeout=170,
                check=False,
            )
            assert child.returncode == 0, f"\n{child.stdout}{child.stderr}"
            assert "1 passed" in child.stdout
            assert not vattd.status().sessions
        assert not {name: count for name, count in world.counters().items() if count.refused}
        assert world.counters()["cudasim_launch"].calls > 0
        assert (world.allocation_count(), world.used_bytes()) == (0, 0)
