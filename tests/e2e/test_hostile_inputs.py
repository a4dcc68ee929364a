"""Thousands of hostile inputs: vattd stays up, grows no fatter, and an innocent engine notices nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import grpc
import pytest

from tests.daemon import Vattd, pages_of
from tests.e2e.conftest import PAGE, Rig
from tests.e2e.hostile import HostileClient
from tests.e2e.test_chaos import Engine
from tests.raw_engine import RawEngine
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

POOL_PAGES = 256
INNOCENT_PAGES = 96
ROUNDS = 20
# Beyond what vattd had in the first third of the rounds. Of each session it remembers the last answers.
MORE_RSS_BYTES = 12 << 20
MORE_FDS = 16
LOG_BYTES_AN_INPUT = 200
SETTLED_WITHIN_S = 30.0


def rss_anon_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def fd_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def check(vattd: Vattd) -> None:
    """The daemon answers, and its sums are right."""
    assert vattd.process.poll() is None
    status = vattd.status()
    pages = pages_of(status)
    assert status.daemon.state == "serving"
    assert sum(pages.values()) == POOL_PAGES
    assert sum(session.leased_bytes for session in status.sessions) == pages["leased"] * PAGE
    assert sum(tenant.leased_bytes for tenant in status.tenants) == pages["leased"] * PAGE


def test_hostile_inputs_harm_nobody(rig: Callable[..., Rig], request: pytest.FixtureRequest) -> None:
    backend = request.node.callspec.params["rig"]
    seed, inputs = request.config.getoption("--hostile-seed"), request.config.getoption("--hostile-inputs")
    there = rig(POOL_PAGES, "--metrics-address", "127.0.0.1:0")
    vattd = there.vattd
    with grpc.insecure_channel(f"unix:{vattd.sockets.admin}") as channel:
        reserve = pb.ReserveRequest(tenant="innocent", min_bytes=INNOCENT_PAGES * PAGE, min_mode=pb.MIN_MODE_HARD)
        vatt_pb2_grpc.AdminServiceStub(channel).Reserve(reserve, timeout=20)
    innocent = Engine(there, "innocent", seed)
    # Of the same tenant, so that its pages are where the engine's are.
    with RawEngine(vattd.sockets, "innocent") as witness:
        runs = witness.lease(16)
        client = HostileClient(vattd, seed, [leased.run for leased in runs], witness.key.session_id)
        rss_bytes, fds = [], []
        begin_s = time.monotonic()
        try:
            for _ in range(ROUNDS):
                steps = innocent.steps
                for _ in range(inputs // ROUNDS):
                    client.send()
                client.settle()
                check(vattd)
                rss_bytes.append(rss_anon_bytes(vattd.pid))
                fds.append(fd_count(vattd.pid))
                deadline_s = time.monotonic() + SETTLED_WITHIN_S
                while innocent.steps == steps:
                    assert time.monotonic() < deadline_s, f"the innocent engine stands still: {innocent.last}"
                    time.sleep(0.01)
        except BaseException:
            print(f"--hostile-seed {seed}")
            innocent.kill()
            raise
        took_s = time.monotonic() - begin_s
        client.close()
        assert witness.give_back(runs) == 16, "nobody else could give its pages back"
        witness.detach()
    innocent.process.terminate()
    assert innocent.wait() == 0, innocent.last
    assert {session.state for session in vattd.status().sessions} <= {"fenced"}, "answers that nobody waited for"
    third = ROUNDS // 3
    words = (
        f"{backend}: {inputs} inputs in {took_s:.0f} s, seed {seed}; RssAnon {[size >> 20 for size in rss_bytes]} MiB, "
    )
    print(words + f"descriptors {fds}, log {len(vattd.log) >> 10} KiB, {dict(client.answers.most_common())}")
    # Medians: the largest messages take megabytes for a moment, and some look or other falls into one.
    assert median(rss_bytes[-third:]) <= median(rss_bytes[:third]) + MORE_RSS_BYTES
    assert median(fds[-third:]) <= median(fds[:third]) + MORE_FDS
    assert len(vattd.log) <= (inputs + 1000) * LOG_BYTES_AN_INPUT, "a client can fill the disk with our log"
    if there.world is not None:
        assert there.world.refused() == 0
