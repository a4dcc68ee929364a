"""Engines killed with SIGKILL at random points, some with children that live on: their pages come back, unharmed."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.daemon import pages_of
from tests.e2e.conftest import Rig, result_of
from vatt.v1 import vatt_pb2 as pb

POOL_PAGES = 512


def test_pages_of_killed_engines_come_back_at_once_and_survivors_notice_nothing(
    rig: Callable[[int], Rig], request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    backend = request.node.callspec.params["rig"]
    chance = random.Random(20261122)
    killing = rig(POOL_PAGES)
    kills = request.config.getoption("--kills")
    stack = ExitStack()
    survivor = killing.engine("survivor", "--row-pages", "4", "--seed", "7")
    assert survivor.stdout is not None
    while "attached" not in survivor.stdout.readline():
        assert survivor.poll() is None
    groups: list[int] = []
    late_s = []
    fds_before = len(os.listdir(f"/proc/{killing.vattd.pid}/fd"))
    try:
        ask = stack.enter_context(killing.vattd.admin())
        for number in range(kills):
            forks = ["--fork"] if number % 3 == 0 else []
            victim = killing.engine("victims", "--progress", "--seed", str(number), *forks)
            groups.append(victim.pid)
            assert victim.stdout is not None
            # From "started", before there is a session, to deep in the middle of things.
            for _ in range(chance.choice([1, 2, 4, 30, 200])):
                victim.stdout.readline()
            pidfd = os.pidfd_open(victim.pid)
            victim.kill()
            select.select([pidfd], [], [])
            late_s.append(seconds_until_back(ask, victim.pid))
            os.close(pidfd)
            victim.stdout.close()
            victim.wait()
        survivor.terminate()
        result = result_of(survivor)
        fds_after = len(os.listdir(f"/proc/{killing.vattd.pid}/fd"))
    finally:
        stack.close()
        # A straggler is in its dead parent's group.
        straggler_count = sum(kill_group(group) for group in groups)
        survivor.kill()
        survivor.wait()
        survivor.stdout.close()
    assert result["pages_checked"] == result["pages_written"] > 0
    print(backend, f"{kills} kills, latest {max(late_s) * 1e3:.1f} ms, {straggler_count} stragglers, survivor {result}")
    record_property(backend, max(late_s))
    assert max(late_s) < request.config.getoption("--back-within-s")
    assert fds_after <= fds_before + 4, "descriptors leak"  # the survivor's session, and this test's own connection
    pages = killing.vattd.pages()
    assert pages["leased"] == pages["quarantined"] == 0, "a page is lost"
    assert sum(pages.values()) == POOL_PAGES


def kill_group(group: int) -> bool:
    """Was anybody left in it?"""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def seconds_until_back(ask: Callable[[], pb.GetStatusResponse], pid: int) -> float:
    """Until vattd shows neither a session of this process nor a page that waits to be destroyed."""
    seen_s = time.monotonic()
    while True:
        status = ask()
        pages = pages_of(status)
        gone = all(session.pid != pid for session in status.sessions)
        if gone and not pages["quarantined"] and not pages["destroying"]:
            return time.monotonic() - seen_s
        assert time.monotonic() - seen_s < 10, "the pages of a dead engine never came back"
