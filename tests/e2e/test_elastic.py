"""The pool beside another program on the same simulated GPU: training, say, that takes what is free."""

from __future__ import annotations

import pytest

from tests.cudasim import MIB, World
from tests.cudasim.processes import Guest
from tests.daemon import Vattd, pages_of
from tests.operator import operator
from tests.raw_engine import RawEngine, in_thread, page_count_of
from vatt.v1 import vatt_pb2 as pb

GPU_BYTES = 1024 * MIB
PAGE = 2 * MIB
# It takes and gives up blocks of 64 MiB as it is told.
TRAINING = """
ok(cu.cuInit(0))
held = []
while True:
    line = sys.stdin.readline().split()
    if not line:
        break
    if line[0] == "take":
        held += [create(64 << 20) for _ in range(int(line[1]))]
    for _ in range(int(line[1]) if line[0] == "give" else 0):
        ok(cu.cuMemRelease(held.pop()))
    print(len(held), flush=True)
"""


def test_when_another_program_takes_the_memory_leases_wait_and_status_says_why() -> None:
    with World(memory_bytes=GPU_BYTES) as world, Vattd("--pool-max", "80%", device="0", env=world.env()) as vattd:
        with Guest(world, TRAINING) as training, operator(vattd.sockets) as op, RawEngine(vattd.sockets) as engine:
            held = engine.lease(100)  # and a context to scrub with: 300 MiB
            op.until(lambda status: pages_of(status)["clean"] >= 8)  # its headroom
            free_mib = (GPU_BYTES - world.used_bytes()) // MIB
            training.say(f"take {free_mib // 64}")
            assert training.hear()
            thread, outcome = in_thread(lambda: engine.lease(150, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=20))
            op.until(lambda status: status.pool.shortage != "")
            assert op.status().pool.waiting_pages == 150
            assert op.status().daemon.state == "serving"
            training.say("give 5")
            assert training.hear()
            thread.join()
            assert page_count_of(outcome[0]) == 150
            op.until(lambda status: status.pool.shortage == "")
            engine.give_back(held)
        assert world.refused() == 0


def test_idle_memory_is_the_other_programs_after_a_shrink() -> None:
    with World(memory_bytes=GPU_BYTES) as world, Vattd("--pool-max", "80%", device="0", env=world.env()) as vattd:
        with Guest(world, TRAINING) as training, operator(vattd.sockets) as op, RawEngine(vattd.sockets) as engine:
            engine.give_back(engine.lease(200))
            context_bytes = world.used_bytes() - 200 * PAGE
            freed = op.admin.Shrink(pb.ShrinkRequest(ask_sessions=True), timeout=20).freed_bytes
            assert freed >= 200 * PAGE
            blocks = (GPU_BYTES - context_bytes) // (64 * MIB) - 1
            training.say(f"take {blocks}")
            assert training.hear() == str(blocks)
            assert world.counters(training.pid)["cuMemCreate"].exhausted == 0


@pytest.mark.parametrize("mode", [pb.MIN_MODE_HARD, pb.MIN_MODE_SOFT])
def test_a_hard_min_is_held_back_from_other_programs_and_a_soft_one_is_not(mode: pb.MinMode.ValueType) -> None:
    with World(memory_bytes=GPU_BYTES) as world, Vattd("--pool-max", "80%", device="0", env=world.env()) as vattd:
        with Guest(world, TRAINING) as training, operator(vattd.sockets) as op:
            op.reserve("a", min_bytes=100 * PAGE, min_mode=mode)
            is_hard = mode == pb.MIN_MODE_HARD
            if is_hard:
                op.until(lambda status: pages_of(status)["clean"] >= 100)
            training.say(f"take {(GPU_BYTES - world.used_bytes()) // (64 * MIB)}")
            assert training.hear()
            with RawEngine(vattd.sockets, "a") as engine:
                if is_hard:
                    assert page_count_of(engine.lease(100)) == 100
                else:
                    promise = op.tenant("a").promise
                    thread, outcome = in_thread(lambda: engine.lease(100, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=2))
                    op.until(lambda status: list(status.tenants[0].promise.broken_by) == ["device"])
                    thread.join()
                    assert isinstance(outcome[0], Exception)
                    assert promise.state == pb.Promise.STATE_HELD, "until somebody asks for it"
