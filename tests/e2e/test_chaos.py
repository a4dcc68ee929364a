"""Engines and vattd killed at random, under load: no page lost or lent twice, all data right, all back at once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest

from tests.daemon import Vattd, pages_of
from tests.e2e.conftest import PAGE, Rig
from tests.e2e.slabs import pages_in_slabs
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

POOL_PAGES = 512
ENGINES = 6
TENANTS = ("hard", "a", "b")
HARD_PAGES = 128
# Every fifth engine leaves a child behind that writes to some of its pages.
FORK_EVERY = 5
# What an engine needs to be in service again after a restart, beyond the time that vattd needs to start.
BACK_WITHIN_S = 2.0
SETTLED_WITHIN_S = 30.0


class Engine:
    """A worker, and how many steps it has taken."""

    def __init__(self, rig: Rig, tenant: str, seed: int, *, forks: bool = False) -> None:
        self.forks = forks
        arguments = ["--progress", "--row-pages", "4", "--seed", str(seed), *(["--fork"] if forks else [])]
        self.process = rig.engine(tenant, *arguments)
        self.lines: Counter[str] = Counter()
        self.last = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():  # a straggler's line may come in between
                self.last = line.strip()
                self.lines[self.last.split()[0]] += 1

    @property
    def steps(self) -> int:
        """That pages were leased for, or given back in."""
        return self.lines["grown"] + self.lines["emptied"]

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Until it has ended and everything that it said is read; a straggler of its may live on."""
        code = self.process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def physical_pages(rig: Rig, pids: list[int]) -> int:
    """What is really there, whoever knows of it: of the slabs, of those that vattd or these processes have."""
    if rig.world is not None:
        return rig.world.allocation_count()
    # One slab is looked at after the other, and vattd moves memory between them.
    rig.vattd.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, rig.vattd.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        return pages_in_slabs([rig.vattd.pid, *pids])
    finally:
        rig.vattd.process.send_signal(signal.SIGCONT)


def accounts(rig: Rig) -> tuple[int, int]:
    """How many pages are really there, and how many vattd says are: once they agree, or after too long a time."""
    end_s = time.monotonic() + SETTLED_WITHIN_S
    while True:
        pages = rig.vattd.pages()
        physical, backed = physical_pages(rig, []), sum(pages.values()) - pages["unbacked"]
        if physical == backed or time.monotonic() > end_s:
            return physical, backed
        time.sleep(0.01)


def check(status: pb.GetStatusResponse) -> None:
    pages = pages_of(status)
    assert sum(pages.values()) == POOL_PAGES
    assert sum(session.leased_bytes for session in status.sessions) == pages["leased"] * PAGE
    hard = next(tenant for tenant in status.tenants if tenant.name == "hard")
    assert hard.guarantee.min_bytes == HARD_PAGES * PAGE, "the guarantee is as it was"
    assert hard.guarantee.min_mode == pb.MIN_MODE_HARD
    assert POOL_PAGES - pages["leased"] >= HARD_PAGES - hard.leased_bytes // PAGE, "an unused hard min was lent"
    assert status.daemon.state == "serving"
    assert status.daemon.disputed_pages_total == 0


def until(condition: Callable[[], bool], within_s: float, what: str) -> float:
    """How long it took."""
    begin_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begin_s < within_s, what
        time.sleep(0.005)
    return time.monotonic() - begin_s


@pytest.fixture
def engines(rig: Callable[..., Rig]) -> Iterator[list[Engine]]:
    started: list[Engine] = []
    yield started
    for engine in started:
        if engine.process.poll() is None:
            engine.kill()


def reserve(vattd: Vattd) -> None:
    with grpc.insecure_channel(f"unix:{vattd.sockets.admin}") as channel:
        request = pb.ReserveRequest(tenant="hard", min_bytes=HARD_PAGES * PAGE, min_mode=pb.MIN_MODE_HARD)
        vatt_pb2_grpc.AdminServiceStub(channel).Reserve(request, timeout=20)


def test_engines_and_vattd_are_killed_at_random(
    rig: Callable[..., Rig], engines: list[Engine], request: pytest.FixtureRequest
) -> None:
    backend = request.node.callspec.params["rig"]
    seed = request.config.getoption("--chaos-seed")
    chance = random.Random(seed)
    there = rig(POOL_PAGES)
    vattd = there.vattd
    reserve(vattd)
    engine_kills, vattd_kills = request.config.getoption("--kills"), request.config.getoption("--vattd-kills")
    blows = ["engine"] * engine_kills + ["vattd"] * vattd_kills
    chance.shuffle(blows)
    serial = 0
    longest_s, most_physical = 0.0, 0

    def start() -> None:
        nonlocal serial
        serial += 1
        engines.append(Engine(there, chance.choice(TENANTS), seed + serial, forks=serial % FORK_EVERY == 0))

    def living() -> list[Engine]:
        return [engine for engine in engines if engine.process.poll() is None]

    for blow in blows:
        while len(living()) < ENGINES:
            start()
        until(lambda: sum(engine.steps > 0 for engine in living()) >= ENGINES // 2, SETTLED_WITHIN_S, "no load")
        if blow == "engine":
            victim = chance.choice(living())
            for _ in range(chance.choice([0, 0, 1, 5, 20])):  # from before it is attached to the middle of things
                time.sleep(0.002)
            victim.kill()
            engines.remove(victim)
        else:
            for _ in range(chance.choice([0, 1, 5, 20, 60])):
                time.sleep(0.005)
            vattd.stop(signal.SIGKILL)
            attached = [engine for engine in living() if engine.lines["attached"]]
            if chance.random() < 0.3 and len(attached) > 1:  # and one of them ends while no vattd runs
                victim = attached.pop()
                victim.kill()
                engines.remove(victim)
            vattd.start()
            longest_s = max(longest_s, until_all_go_on(attached))
        check(vattd.status())
        most_physical = max(most_physical, physical_pages(there, [engine.process.pid for engine in living()]))
        assert most_physical <= POOL_PAGES, "more memory is in use than the pool may take"
    until(lambda: all(engine.steps for engine in living()), SETTLED_WITHIN_S, "not all engines came so far")
    for engine in living():
        if engine.forks:  # to return pages that its straggler wrote to would make them look like strays
            engine.kill()
            engines.remove(engine)
        else:
            engine.process.terminate()
    for engine in list(engines):
        assert engine.wait() == 0, engine.last
        engines.remove(engine)
    status = vattd.status()
    until(lambda: settled(vattd.status()), SETTLED_WITHIN_S, f"pages are lost: {status.pool} {status.sessions}")
    physical, backed = accounts(there)
    assert physical == backed, "memory is in use that vattd does not know of, or the other way round"
    if there.world is not None:
        assert there.world.refused() == 0
    print(
        f"{backend}: {engine_kills} engines and {vattd_kills} vattd killed (seed {seed}), {serial} engines in all, "
        f"back in service {longest_s:.2f} s after a start at the latest, most physical pages {most_physical}"
    )
    assert longest_s < BACK_WITHIN_S * max(1.0, request.config.getoption("--back-within-s"))


def until_all_go_on(engines: list[Engine]) -> float:
    """Until each has taken a step more; how long that took."""
    before = [(engine, engine.steps) for engine in engines]
    words = f"not all engines are back: {[(engine.last, engine.process.poll()) for engine in engines]}"
    return until(lambda: all(engine.steps > steps for engine, steps in before), SETTLED_WITHIN_S, words)


def settled(status: pb.GetStatusResponse) -> bool:
    """Nothing is lent or taken, and nobody is waited for."""
    pages = pages_of(status)
    return not status.sessions and not pages["leased"] and not pages["quarantined"] and not pages["destroying"]
