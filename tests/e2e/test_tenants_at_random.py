"""Eight engines of four tenants at random on one pool, some stopped and killed: promises hold, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.daemon import pages_of
from tests.e2e.conftest import PAGE, Rig, result_of
from tests.operator import Operator, operator
from vatt.v1 import vatt_pb2 as pb

POOL_PAGES = 1024
HARD_PAGES = 192
SOFT_PAGES = 256
MOST_PAGES = 300


def start(stack: ExitStack, rig: Rig, tenant: str, seed: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.e2e.random_engine", "--socket-dir", str(rig.vattd.socket_dir)]
    process = subprocess.Popen(
        [*command, "--tenant", tenant, "--seed", str(seed), *options],
        env=os.environ | rig.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(process)  # its pipe, and its end, which comes first
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("attached")
    return process


def check(status: pb.GetStatusResponse) -> None:
    """What holds at every instant, whatever eight engines do."""
    pages = pages_of(status)
    assert sum(pages.values()) == POOL_PAGES
    leased = {tenant.name: tenant.leased_bytes // PAGE for tenant in status.tenants}
    assert sum(leased.values()) == pages["leased"] <= POOL_PAGES
    assert sum(session.leased_bytes for session in status.sessions) == pages["leased"] * PAGE
    assert leased["most"] <= MOST_PAGES
    kept = max(0, HARD_PAGES - leased["hard"])
    assert POOL_PAGES - pages["leased"] >= kept, "an unused hard min was lent"
    assert status.pool.kept_free_bytes == kept * PAGE
    assert status.daemon.state == "serving"


def disturb(status: pb.GetStatusResponse, chance: random.Random, op: Operator, stopped: set[int]) -> None:
    """Stop or continue an engine that was promised nothing, or change weights and a reservation."""
    if chance.random() < 0.5:
        pid = chance.choice([session.pid for session in status.sessions if session.tenant in ("free", "most")])
        os.kill(pid, signal.SIGCONT if pid in stopped else signal.SIGSTOP)
        stopped ^= {pid}
    else:
        op.reserve("free", weight=chance.randint(1, 9))


@pytest.mark.parametrize("deaf", [False, True])
def test_eight_engines_at_random_never_break_a_promise(
    rig: Callable[..., Rig],
    request: pytest.FixtureRequest,
    deaf: bool,
    record_property: Callable[[str, object], None],
) -> None:
    here = rig(POOL_PAGES, "--reclaim-within", "300ms", "--reclaim-kill-after", "1s", "--head-hold", "500ms")
    seconds = request.config.getoption("--seconds")
    chance = random.Random(20261125)
    with ExitStack() as stack:
        op = stack.enter_context(operator(here.vattd.sockets))
        op.reserve("hard", min_bytes=HARD_PAGES * PAGE, min_mode=pb.MIN_MODE_HARD)
        op.reserve("soft", min_bytes=SOFT_PAGES * PAGE)
        op.reserve("most", max_bytes=MOST_PAGES * PAGE)
        op.until(lambda status: pages_of(status)["clean"] + pages_of(status)["dirty"] >= HARD_PAGES)
        quiet = ["--deaf"] if deaf else []
        promised = [
            start(stack, here, "hard", 1, "--within", str(HARD_PAGES), "--hard"),
            start(stack, here, "soft", 2, "--within", str(SOFT_PAGES // 2)),
            start(stack, here, "soft", 3, "--within", str(SOFT_PAGES // 2)),
        ]
        tenants = ["most", "most", "free", "free", "free"]
        others = [start(stack, here, tenant, 4 + at, *quiet) for at, tenant in enumerate(tenants)]
        stopped: set[int] = set()
        end_s = time.monotonic() + seconds
        looks = 0
        while time.monotonic() < end_s:
            status = op.status()
            check(status)
            looks += 1
            if looks % 25 == 0:
                disturb(status, chance, op, stopped)
            for number, process in enumerate(others):
                if process.poll() is not None:  # killed for a promise: another takes its place
                    assert process.returncode == -signal.SIGKILL
                    stopped.discard(process.pid)
                    others[number] = start(stack, here, tenants[number], 1000 + looks, *quiet)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        living = [process for process in (*promised, *others) if process.poll() is None]
        for process in living:
            process.terminate()
        results = [result_of(process) for process in promised]
        reclaims = op.status().pool.reclaims
        for process in others:
            process.wait(30)
        op.until(lambda status: pages_of(status)["leased"] == pages_of(status)["quarantined"] == 0)
    for result in results:
        assert result["pages_checked"] == result["pages_written"] > 0
        assert "refused" not in result or result["refused"] == 0
    longest_s = max(result["longest_s"] for result in results)
    print(
        request.node.callspec.id, f"{looks} looks, longest soft wait {longest_s:.2f} s, {reclaims}".replace("\n", " ")
    )
    record_property("longest_soft_wait_s", longest_s)
    assert reclaims.asked_pages_total > 0, "the pool was never short: the test shows too little"
    if here.world is not None:
        assert here.world.refused() == 0
