"""What one tenant's engine finds of another's bytes when pages pass on, for each way to run vattd."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.daemon import pages_of, run_command
from tests.e2e.conftest import PAGE, Rig
from tests.operator import operator
from tests.raw_engine import RawEngine, page_count_of
from vatt.v1 import vatt_pb2 as pb

POOL_PAGES = 16
ENDS_WITHIN_S = 60.0
MARKS = {"a": 0x11, "b": 0x22}
HOLDS_ALL = """
import sys
from vattention import Session
session = Session.connect("a", socket_dir=sys.argv[1])
address = session.mapper.reserve(int(sys.argv[2]) * session.page_size_bytes).address
extents = session.lease(int(sys.argv[2]))
session.mapper.map(address, extents)
print([extent.index + at for extent in extents for at in range(extent.page_count)], flush=True)
sys.stdin.read()
"""


class Engine:
    """A `handover` process, a line at a time."""

    def __init__(self, rig: Rig, tenant: str, *options: str) -> None:
        arguments = ["--socket-dir", str(rig.vattd.socket_dir), "--device", rig.vattd.ready["device"]]
        arguments += ["--tenant", tenant, "--pool-pages", str(POOL_PAGES), "--mark", str(MARKS[tenant]), *options]
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.e2e.handover", *arguments],
            env=os.environ | rig.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the engine ended"
        return answer.strip()

    def look(self, word: str) -> Counter[str]:
        return Counter(json.loads(self.do(word)))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it prints where its threads are
            self.process.wait(ENDS_WITHIN_S)
            raise


@contextmanager
def engines(rig: Rig, *tenants: str, keep: bool = False) -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        made = []
        for tenant in tenants:
            made.append(Engine(rig, tenant, *(["--keep"] if keep else [])))
            stack.callback(made[-1].close)
        yield made


def hand_over(rig: Rig, count: int) -> dict[str, Counter[str]]:
    """The whole pool from one engine to another, `count` times: what tenants found at their turns, by who was there
    before: "same" tenant or "other"."""
    chance = random.Random(20261125)
    found = {"same": Counter[str](), "other": Counter[str]()}
    with engines(rig, "a", "a", "b") as all_three:
        before = -1
        for _ in range(count + 1):
            turn = chance.choice([number for number in range(3) if number != before])
            seen = all_three[turn].look("turn")
            assert seen.total() == POOL_PAGES
            if before >= 0:
                found["same" if {turn, before} == {0, 1} else "other"] += seen
            before = turn
    return found


def start(rig: Callable[..., Rig], *options: str) -> Rig:
    return rig(POOL_PAGES, "--headroom", "0", *options)


def finish(rig: Rig) -> None:
    """No page is lost, and no driver call was refused."""
    pages = rig.vattd.pages()
    assert pages["leased"] == pages["quarantined"] == 0
    assert sum(pages.values()) == POOL_PAGES
    if rig.world is not None:
        assert rig.world.refused() == 0


@pytest.mark.parametrize("options", [(), ("--scrub", "always"), ("--isolate",), ("--isolate", "--scrub", "always")])
def test_no_byte_of_one_tenant_reaches_another(
    rig: Callable[..., Rig],
    options: tuple[str, ...],
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    handovers = request.config.getoption("--handovers")
    passing = start(rig, *options)
    found = hand_over(passing, handovers)
    print(passing.backend, options, f"{handovers} hand-overs", found)
    record_property(f"{passing.backend} {options}", found)
    kinds = set(found["other"])
    assert kinds == {"zeros"}, "another tenant's bytes, or a fresh page's"
    # That pages do come back as they were, to their own tenant, shows that "always" has something to do.
    assert set(found["same"]) == ({"zeros"} if "always" in options else {"own"})
    finish(passing)


def test_with_never_old_bytes_do_arrive_where_the_kernel_does_not_zero_pages(rig: Callable[..., Rig]) -> None:
    """So the test above can fail. On the host new ranges of a memfd are zeros, whatever vattd does."""
    passing = start(rig, "--scrub", "never")
    found = hand_over(passing, 20)
    if passing.world is None:
        assert set(found["other"]) == {"zeros"}
    else:
        assert set(found["other"]) == {"foreign"}
        assert passing.world.counters()["cuMemsetD8"].calls == 0
        assert passing.world.counters()["cuDevicePrimaryCtxRetain"].calls == 0
        assert "tenants may read what others left" in passing.vattd.log
        place = ["--socket-dir", str(passing.vattd.socket_dir)]
        status = run_command(["vattctl", "status", *place], passing.env)
        assert "never: tenants may read each other's old bytes" in status.stdout
    assert passing.vattd.status().pool.context_bytes == 0
    finish(passing)


@pytest.mark.parametrize("isolate", [True, False])
def test_who_keeps_a_page_mapped_reaches_another_tenants_only_where_pages_pass_on(
    rig: Callable[..., Rig], isolate: bool
) -> None:
    """CUDA cannot take an import back. With --isolate it is an import of a page that nobody else gets."""
    keeping = start(rig, *(["--isolate"] if isolate else []))
    with engines(keeping, "a", "b", keep=True) as (old, new):
        for word in ("take", "fill", "return"):
            old.do(word)
        new.do("take")
        assert new.look("look") == {"zeros": POOL_PAGES}
        new.do("fill")
        old.do("fill")
        passed_on = keeping.world is not None and not isolate
        assert new.look("look") == ({"foreign": POOL_PAGES} if passed_on else {"own": POOL_PAGES})
        status = keeping.vattd.status()
        assert status.pool.isolated == (not passed_on)
        if keeping.world is not None:
            # Those that the old tenant still holds, and those that the new one got: the same, or others.
            most = POOL_PAGES if passed_on else 2 * POOL_PAGES
            assert keeping.world.allocation_count() == most
            assert keeping.world.counters(keeping.vattd.pid)["cuMemCreate"].calls == most
            assert keeping.world.counters(keeping.vattd.pid)["cuMemRelease"].calls == most - POOL_PAGES
        new.do("return")
    with operator(keeping.vattd.sockets) as op:
        op.until(lambda status: not pages_of(status)["leased"] + pages_of(status)["quarantined"])
    finish(keeping)


@pytest.mark.parametrize("rig", ["host"], indirect=True)
def test_places_in_a_slab_that_a_dead_engine_held_are_not_used_again_not_even_by_its_tenant(
    rig: Callable[..., Rig],
) -> None:
    """Whoever kept the slab open, a child of the dead say, may write there for ever: nobody gets these places."""
    retiring = start(rig)
    arguments = [sys.executable, "-c", HOLDS_ALL, str(retiring.vattd.socket_dir), str(POOL_PAGES)]
    # Without another session of the tenant the whole slab would go.
    with RawEngine(retiring.vattd.sockets, "a") as after:
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as dying:
            assert dying.stdout is not None
            offsets = {index * PAGE for index in json.loads(dying.stdout.readline())}
            assert len(offsets) == POOL_PAGES
            slab = open_slab(dying.pid)  # as a child of it would have it: one that lives on
            dying.kill()
        runs = after.lease(POOL_PAGES, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=60)
        assert page_count_of(runs) == POOL_PAGES
        places = {leased.offset_bytes + at * PAGE for leased in runs for at in range(leased.run.page_count)}
        assert not places & offsets
        _, fds = after.handles.pull([runs[0].run])
        assert os.fstat(fds[0]).st_ino == os.fstat(slab).st_ino, "it is the same slab: only its places are others"
        for offset in offsets:
            os.pwrite(slab, b"\xee" * PAGE, offset)
        for offset in places:
            assert os.pread(fds[0], PAGE, offset) == bytes(PAGE)
        os.close(fds[0])
        after.detach()
    os.close(slab)


def open_slab(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    [number] = [number for number in os.listdir(folder) if "vattd-slab" in os.readlink(f"{folder}/{number}")]
    return os.open(f"{folder}/{number}", os.O_RDWR)
