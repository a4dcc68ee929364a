"""Two tenants whose wishes together are 1.5 times the pool: who was promised what gets it, whatever the other does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.daemon import Vattd
from tests.e2e.conftest import PAGE, Rig
from tests.operator import Operator, operator
from vatt.v1 import vatt_pb2 as pb

POOL_PAGES = 1024
MIN_PAGES = 512


class Engine:
    """A tests.e2e.tenant_engine in a process of its own."""

    def __init__(self, vattd: Vattd, env: dict[str, str], tenant: str, *options: str) -> None:
        command = [sys.executable, "-m", "tests.e2e.tenant_engine", "--socket-dir", str(vattd.socket_dir)]
        self.process = subprocess.Popen(
            [*command, "--tenant", tenant, *options],
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.session_id = self.answer()["session_id"]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, line: str) -> dict[str, Any]:
        self.tell(line)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Stage:
    """A rig with two tenants: `a` was promised half of the pool."""

    def __init__(self, rig: Rig, stack: ExitStack, mode: pb.MinMode.ValueType) -> None:
        self._stack, self.rig = stack, rig
        self.op: Operator = stack.enter_context(operator(rig.vattd.sockets))
        self.op.reserve("a", min_bytes=MIN_PAGES * PAGE, min_mode=mode)

    def engine(self, tenant: str, *options: str) -> Engine:
        engine = Engine(self.rig.vattd, self.rig.env, tenant, *options)
        self._stack.callback(engine.close)
        return engine

    def end(self) -> None:
        if self.rig.world is not None:
            assert self.rig.world.refused() == 0
            calls = self.rig.world.counters()
            assert sum(count.exhausted for count in calls.values()) == 0, "the driver ran out of memory"


@pytest.fixture
def stage(rig: Callable[..., Rig]) -> Iterator[Callable[..., Stage]]:
    with ExitStack() as stack:
        yield lambda mode=pb.MIN_MODE_SOFT, *options: Stage(rig(POOL_PAGES, *options), stack, mode)


def test_an_idle_engine_gives_a_min_back_within_a_second_without_doing_anything(stage: Callable[..., Stage]) -> None:
    here = stage()
    borrower, owner = here.engine("b"), here.engine("a")
    assert borrower.ask("fill")["pages"] > POOL_PAGES * 3 // 4
    borrower.ask("end all")  # its slots keep what they can, and it does nothing from now on
    begin_s = time.monotonic()
    for _ in range(MIN_PAGES // 32):
        assert "took_s" in owner.ask("admit 32 5")
    took_s = time.monotonic() - begin_s
    print(f"{MIN_PAGES} pages of an idle borrower in {took_s * 1e3:.0f} ms")
    assert owner.ask("stats")["pages"] == MIN_PAGES
    assert took_s < 1
    here.end()


def test_a_running_borrower_gives_a_min_back_within_a_second(stage: Callable[..., Stage]) -> None:
    here = stage()
    borrower, owner = here.engine("b", "--yields"), here.engine("a")
    filled = borrower.ask("fill")["pages"]
    assert filled > POOL_PAGES * 3 // 4
    began_s, waits_s = time.monotonic(), []
    for number in range(MIN_PAGES // 32):
        if number % 4 == 0:
            borrower.ask("end 1")  # ordinary returns, beside what it is asked for
        waits_s.append(owner.ask("admit 32 5")["took_s"])
    took_s = time.monotonic() - began_s
    print(f"{MIN_PAGES} pages of a running borrower in {took_s * 1e3:.0f} ms, longest wait {max(waits_s) * 1e3:.0f} ms")
    assert took_s < 1
    assert borrower.ask("stats")["preempted"] > 0
    assert owner.ask("stats")["pages"] == MIN_PAGES
    assert here.op.tenant("a").promise.state == pb.Promise.STATE_HELD
    here.end()


def test_a_hard_min_is_there_from_the_start_though_the_borrower_is_stopped(stage: Callable[..., Stage]) -> None:
    here = stage(pb.MIN_MODE_HARD)
    borrower, owner = here.engine("b"), here.engine("a")
    assert borrower.ask("fill")["pages"] <= POOL_PAGES - MIN_PAGES
    os.kill(borrower.process.pid, signal.SIGSTOP)
    for _ in range(MIN_PAGES // 32):
        assert "took_s" in owner.ask("admit 32 0"), "nobody waits within a hard min"
    assert owner.ask("stats")["pages"] == MIN_PAGES
    here.end()


def test_a_soft_min_that_a_stopped_borrower_breaks_is_shown_and_kept_by_killing_it(stage: Callable[..., Stage]) -> None:
    here = stage(pb.MIN_MODE_SOFT, "--reclaim-within", "500ms", "--reclaim-kill-after", "2s")
    borrower, owner = here.engine("b"), here.engine("a")
    borrower.ask("fill")
    os.kill(borrower.process.pid, signal.SIGSTOP)
    begin_s = time.monotonic()
    owner.ask("admit 32 0")  # refused or not: what was free is gone soon
    while "took_s" in owner.ask("admit 32 0"):
        pass
    owner.tell("admit 32 20")
    here.op.until(
        lambda status: any(tenant.promise.broken_by == [borrower.session_id] for tenant in status.tenants), within_s=5
    )
    assert here.op.tenant("a").promise.state == pb.Promise.STATE_BROKEN
    assert "took_s" in owner.answer()
    print(f"kept after {time.monotonic() - begin_s:.1f} s, the borrower killed")
    assert borrower.process.wait(10) == -signal.SIGKILL
    while (held := owner.ask("stats")["pages"]) < MIN_PAGES:
        assert "took_s" in owner.ask(f"admit {min(32, MIN_PAGES - held)} 5")
    status = here.op.status()
    assert status.pool.reclaims.killed_total == 1
    assert not any(session.session_id == borrower.session_id for session in status.sessions)
    here.end()


def test_an_engine_in_its_min_is_never_asked_and_never_killed(stage: Callable[..., Stage]) -> None:
    here = stage(pb.MIN_MODE_SOFT, "--reclaim-within", "200ms", "--reclaim-kill-after", "500ms")
    here.op.reserve("b", min_bytes=(POOL_PAGES - MIN_PAGES) * PAGE)
    quiet, owner = here.engine("b"), here.engine("a")
    while quiet.ask("stats")["pages"] < POOL_PAGES - MIN_PAGES - 64:
        quiet.ask("admit 32 5")
    os.kill(quiet.process.pid, signal.SIGSTOP)
    while "took_s" in owner.ask("admit 32 1.5"):
        pass
    status = here.op.status()
    assert status.pool.reclaims.killed_total == 0
    session = next(session for session in status.sessions if session.session_id == quiet.session_id)
    os.kill(quiet.process.pid, signal.SIGCONT)
    assert session.asked_back_bytes == 0
    assert quiet.ask("stats")["preempted"] == 0
    here.end()


def test_queued_requests_of_a_tenant_whose_max_is_lowered_wait_and_nothing_goes_wrong(
    stage: Callable[..., Stage],
) -> None:
    here = stage()
    engine = here.engine("b", "--yields")
    engine.ask("fill")
    here.op.reserve("b", max_bytes=256 * PAGE)
    here.op.until(lambda status: next(t for t in status.tenants if t.name == "b").leased_bytes <= 256 * PAGE)
    while "took_s" in engine.ask("admit 32 0.2"):
        pass
    assert engine.ask("stats")["leased"] <= 256
    here.op.unreserve("b")
    assert "took_s" in engine.ask("admit 32 5")
    here.end()
