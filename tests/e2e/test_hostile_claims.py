"""After a restart, a session claims whatever comes to its mind, and brings whatever it has: nobody is harmed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import grpc
import pytest

from tests.daemon import Vattd
from tests.e2e.conftest import Rig
from tests.e2e.hostile import NUMBERS
from tests.e2e.test_chaos import Engine, settled, until, until_all_go_on
from tests.e2e.test_hostile_inputs import check, fd_count
from tests.raw_engine import RawEngine, reason_of
from tests.vattd.test_recovery import ZONE_PAGES, Resumed, restart, slab_of
from vatt.v1 import vatt_pb2 as pb

POOL_PAGES = 256
OWN_PAGES = 24
# Of the inputs that the whole test is given.
PART = 20
A_RESTART = 40
MORE_FDS = 16
WITHIN_S = 60.0


class Claimant:
    """A session of an earlier vattd's, and what it could say to the next one."""

    def __init__(self, vattd: Vattd, seed: int, foreign: Sequence[pb.LeasedRun], files: Sequence[int]) -> None:
        self.vattd, self.random, self.files = vattd, random.Random(seed), files
        self.engine = RawEngine(vattd.sockets, "hostile")
        self.runs = [leased.run for _ in range(OWN_PAGES // 3) for leased in self.engine.lease(3)]
        self.known = [*self.runs, *(leased.run for leased in foreign)]

    def slab(self) -> int:
        """On the host: a descriptor of the slab that its pages are in."""
        [leased] = self.engine.lease(1)
        self.runs.append(leased.run)
        return slab_of(self.engine, leased)

    def claim(self) -> str:
        """What came of it."""
        slabs = {} if self.random.random() < 0.3 else {zone: self.random.choice(self.files) for zone in range(6)}
        try:
            Resumed(self.vattd, self.engine, self._runs(), slabs, tenant="hostile").close()
        except PermissionError:  # it is expected no more: Linux refuses its descriptors
            return "no descriptors"
        except grpc.RpcError as error:
            return reason_of(error)
        return "OK"

    def _runs(self) -> list[pb.PageRun]:
        runs = []
        for _ in range(self.random.choice([1, 2, 5, 300])):
            run = pb.PageRun()
            run.CopyFrom(self.random.choice(self.known))
            if self.random.random() < 0.9:
                field = self.random.choice(["first_page_id", "page_count", "generation"])
                near = getattr(run, field) + self.random.choice([-1, 1])
                setattr(run, field, self.random.choice([near, self.random.choice(NUMBERS)]))
            runs.append(run)
        return runs


def test_hostile_claims_harm_nobody(rig: Callable[..., Rig], request: pytest.FixtureRequest) -> None:
    backend, seed = request.node.callspec.params["rig"], request.config.getoption("--hostile-seed")
    rounds = max(1, request.config.getoption("--hostile-inputs") // PART // A_RESTART)
    there = rig(POOL_PAGES)
    vattd = there.vattd
    innocent = Engine(there, "innocent", seed)
    answers: Counter[str] = Counter()
    fds: list[int] = []
    try:
        for number in range(rounds):
            until_all_go_on([innocent])
            with ExitStack() as stack, RawEngine(vattd.sockets, "innocent") as witness:
                files = [os.open("/dev/null", os.O_RDWR), os.memfd_create("vattd-slab"), *os.pipe()]
                theirs = witness.lease(8)
                claimant = Claimant(vattd, seed + number, theirs, files)
                slabs = {}
                if backend == "host":
                    slabs[theirs[0].run.first_page_id // ZONE_PAGES] = slab_of(witness, theirs[0])
                    files += [claimant.slab(), *slabs.values()]
                for fd in files:
                    stack.callback(os.close, fd)
                restart(vattd)
                for _ in range(A_RESTART):
                    answer = claimant.claim()
                    answers[answer] += 1
                    if answer == "OK":  # it holds now what it said, and is not asked again
                        break
                check(vattd)
                with Resumed(vattd, witness, [one.run for one in theirs], slabs, tenant="innocent") as resumed:
                    kept = 8 - sum(run.page_count for run in resumed.attached.refused_claims)
                    assert kept == 8 or backend == "cudasim", "a slab is its tenant's alone"
                    back = pb.ReturnPagesRequest(key=witness.key, runs=[one.run for one in theirs])
                    assert resumed.stub.ReturnPages(back).returned_pages == kept
                    for key in (witness.key, claimant.engine.key):
                        resumed.stub.Detach(pb.DetachRequest(key=key))
                claimant.engine.close()
            fds.append(fd_count(vattd.pid))
        until_all_go_on([innocent])
    except BaseException:
        print(f"--hostile-seed {seed}")
        innocent.kill()
        raise
    innocent.process.terminate()
    assert innocent.wait() == 0, innocent.last
    until(lambda: settled(vattd.status()), WITHIN_S, "pages are lost")
    print(f"{backend}: {sum(answers.values())} claims, seed {seed}; descriptors {fds}, {dict(answers.most_common())}")
    assert max(fds) <= fds[0] + MORE_FDS
    if there.world is not None:
        assert there.world.refused() == 0
