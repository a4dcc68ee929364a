"""The bench on CUDA: in the simulated machine, and on a real GPU where there is one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cudasim import MIB, World
from tests.daemon import Vattd, run_command
from tests.faults.test_on_cuda import run_in_a_world
from vattention.vmm import default_device

HERE = Path(__file__).parent
SHORT = "tests.vattctl.bench.short"
WITHIN_S = 60.0


def test_no_call_that_fails_leaves_a_page() -> None:
    run_in_a_world([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_undo.py")])


def bench(world: World, *arguments: str, program: str = SHORT) -> subprocess.CompletedProcess[str]:
    return run_command([program, "bench", "--quick", *arguments], {**world.env(), "COLUMNS": "80"})


def test_no_more_memory_is_taken_than_was_allowed() -> None:
    """The device has just that, and the room for a context that a context then takes all of."""
    with World(memory_bytes=(32 + 768) * MIB, context_bytes=768 * MIB) as world:
        done = bench(world, "--gpu", "0", "--memory", "32MiB", "--only", "calls", "--only", "leases", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert not {name: count for name, count in world.counters().items() if count.exhausted or count.refused}
        assert world.allocation_count() == world.used_bytes() == 0
        report = json.loads(done.stdout)
        assert report["settings"]["page_counts"] == [1, 16]
        assert report["environment"]["gpu"]["is_simulated"] is True
        assert report["environment"]["gpu"]["context_bytes"] == 768 * MIB
        assert report["pool"]["created_pages"] == 0
        assert {line["page_count"] for line in report["leases"]["lines"]} == {1, 16}
        too_much = bench(world, "--gpu", "0", "--memory", "128MiB")
        assert too_much.returncode == 1
        assert "give --memory 32MiB, or free some" in too_much.stderr


def test_a_simulated_driver_is_called_so_and_compared_with_nothing() -> None:
    with World() as world:
        arguments = ["--gpu", "0", "--memory", "32MiB", "--only", "calls"]
        table, text = (bench(world, *arguments, *form) for form in ([], ["--markdown"]))
        for said in (table.stdout, text.stdout):
            assert "SIMULATED" in said
            assert "NVIDIA Simulated A100" in said
        assert max(map(len, table.stdout.splitlines())) <= 80
        published = table.stdout.split("Beside published figures")[-1]
        [row] = [line.split() for line in published.splitlines() if line.startswith("create ")]
        assert row[2:] == ["29.0", "-", "193", "-"], "theirs, and no ratio"


def test_who_interrupts_it_finds_every_page_released_and_no_vattd_left() -> None:
    with World(memory_bytes=2048 * MIB) as world:
        command = [sys.executable, "-m", "vattctl", "bench", "--gpu", "0", "--memory", "32MiB"]
        for call, part in (("cuMemUnmap", "calls"), ("cuMemExportToShareableHandle", "leases")):
            before = world.counters()[call].calls
            process = subprocess.Popen(
                [*command, "--only", part],
                env={**os.environ, **world.env()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            deadline_s = time.monotonic() + WITHIN_S
            while world.counters()[call].calls < before + 50 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WITHIN_S)
            assert (process.returncode, out, err) == (1, "", "vattctl: interrupted: all pages were released\n")
            assert world.allocation_count() == world.used_bytes() == world.refused() == 0


@pytest.mark.parametrize(
    ("code", "call", "part"),
    [
        ("OUT_OF_MEMORY", "cuMemCreate", "calls"),
        ("ILLEGAL_ADDRESS", "cuMemSetAccess", "calls"),
        ("NOT_PERMITTED", "cuMemImportFromShareableHandle", "leases"),
        ("INVALID_VALUE", "cuMemRelease", "leases"),
    ],
)
def test_a_part_that_fails_on_its_way_leaves_nothing_and_is_told_by_the_drivers_word(
    code: str, call: str, part: str
) -> None:
    with World(memory_bytes=2048 * MIB) as world:
        world.faults.fail(code, call, at=200)
        done = bench(world, "--memory", "32MiB", "--only", part, "-o", "json", program="vattctl")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert call in done.stderr
        told = json.loads(done.stdout)["left_out"][part]
        assert told["is_failure"]
        assert told["words"].endswith(f": {call} CUDA_ERROR_{code}")
        assert world.allocation_count() == world.used_bytes() == world.refused() == 0


def test_a_gpu_that_a_vattd_owns_is_measured_with_attach_and_else_nothing_is_begun() -> None:
    with World(memory_bytes=2048 * MIB) as world, Vattd("--pool-max", "64MiB", device="0", env=world.env()) as vattd:
        here = ["--socket-dir", str(vattd.socket_dir)]
        alone = bench(world, *here)
        assert alone.returncode == 1
        assert "add --attach to lease from that, or --only calls" in " ".join(alone.stderr.split())
        done = bench(world, *here, "--attach", "--only", "leases", "-o", "json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["pool"]["is_private"] is False
        assert {line["page_count"] for line in report["leases"]["lines"]} == {1, 16}, "no more than the pool has"
        assert vattd.pages()["leased"] == 0


def test_what_fails_is_named_without_the_device_and_the_rest_is_told() -> None:
    """A vattd in a place that the bench does not know of has the GPU."""
    with World(memory_bytes=2048 * MIB) as world, Vattd("--pool-max", "64MiB", device="0", env=world.env()):
        done = bench(world, "--memory", "32MiB", "--only", "calls", "--only", "leases", "--markdown")
        assert done.returncode == 1
        assert "runs already" in done.stderr
        assert "| no leases | failed: DAEMON_UNREACHABLE |" in done.stdout
        assert "| create | cuMemCreate |" in done.stdout
        assert str(world.uuids[0]) not in done.stdout


def test_steps_map_pages_ahead_or_in_the_step_on_the_simulated_gpu() -> None:
    with World(memory_bytes=2048 * MIB) as world, Vattd("--pool-max", "256MiB", device="0", env=world.env()) as vattd:
        child = subprocess.run(
            [sys.executable, "-m", "tests.vattctl.bench.steps_on_cuda", str(vattd.socket_dir)],
            env={**os.environ, **world.env()},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        assert child.returncode == 0, child.stderr
        assert world.refused() == 0
        mapped = json.loads(child.stdout)
        assert mapped["IDLE"] == 0
        assert mapped["IN_STEP"] == pytest.approx(1.0)  # 16 slots: one of them crosses into a new page each step
        assert 0 < mapped["AHEAD"] <= 1.1
        assert vattd.pages()["leased"] == 0


def full_report(*arguments: str) -> dict[str, Any]:
    done = run_command(["vattctl", "bench", "--quick", *arguments, "-o", "json"])
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.gpu
@pytest.mark.skipif(default_device() == "host", reason="there is no GPU")
def test_a_real_gpu_is_measured_whole() -> None:
    report = full_report("--gpu", "0", "--memory", "128MiB")
    assert report["environment"]["gpu"]["is_simulated"] is False
    assert report["environment"]["gpu"]["driver_version"] is not None
    calls = {line["call"] for line in report["calls"]}
    assert {"cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease"} <= calls
    assert report["leases"]["lines"]
    assert not [why for why in report["left_out"].values() if why["is_failure"]]
