"""Who reaches the device through an MPS server is lent nothing, unless the operator allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cudasim import MIB, World
from tests.daemon import Vattd

POOL = ("--pool-max", "64MiB", "--scrub", "never")
ENGINE = """
import sys, vattention
try:
    with vattention.Session.connect("test", socket_dir=sys.argv[1]) as session:
        print(sum(extent.page_count for extent in session.lease(2)), "pages")
        input()  # until told to go on
        session.lease(1)  # waits until it is back
        print(session.state.value)
except vattention.VattError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def world() -> Iterator[World]:
    with World(memory_bytes=128 * MIB) as world:
        yield world
        assert not world.refused()


class Engine:
    def __init__(self, vattd: Vattd, world: World, *, mps: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(vattd.socket_dir)],
            env={**os.environ, **world.env(mps=mps)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def last_line(self) -> str:
        return self._process.communicate("\n", timeout=30)[0]


def test_an_engine_behind_mps_is_refused_and_holds_no_session(world: World) -> None:
    with Vattd(*POOL, device="0", env=world.env()) as vattd:
        answer = Engine(vattd, world, mps=True).last_line()
        assert answer.startswith("MpsRefused process ")
        assert "CUDA_MPS_PIPE_DIRECTORY" in answer
        assert "--allow-mps" in answer
        assert not vattd.status().sessions
        other = Engine(vattd, world, mps=False)
        assert other.line() == "2 pages\n"
        assert other.last_line() == "attached\n"


def test_the_operator_may_allow_it_and_a_session_stays_when_that_is_taken_back(world: World) -> None:
    with Vattd(*POOL, device="0", env=world.env()) as vattd:
        vattd.stop()
        vattd.start("--allow-mps")
        engine = Engine(vattd, world, mps=True)
        assert engine.line() == "2 pages\n"
        vattd.stop()
        vattd.start()
        while [session.state for session in vattd.status().sessions] != ["attached"]:
            assert vattd.process.poll() is None
        assert engine.last_line() == "attached\n"
        assert Engine(vattd, world, mps=True).last_line().startswith("MpsRefused ")


def test_vattd_itself_is_no_client_of_an_mps_server_unless_the_operator_allows_it(world: World) -> None:
    with pytest.raises(RuntimeError, match=r"reaches GPU-.* through an MPS server.*--allow-mps"):
        Vattd(*POOL, device="0", env=world.env(mps=True))
    assert world.allocation_count() == 0
    with Vattd(*POOL, "--allow-mps", device="0", env=world.env(mps=True)) as vattd:
        assert vattd.pages()
