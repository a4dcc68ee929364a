"""Both backends for the end-to-end tests: host memory, and CUDA through the simulated driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cudasim import World
from tests.daemon import Vattd

PAGE = 64 << 10


@dataclass
class Rig:
    """A vattd, and how to start engines on it."""

    backend: str
    vattd: Vattd
    env: dict[str, str]
    world: World | None

    def engine(self, tenant: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.e2e.worker", "--socket-dir", str(self.vattd.socket_dir)]
        return subprocess.Popen(
            [*command, "--tenant", tenant, *arguments],
            env=os.environ | self.env,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(params=["host", "cudasim"])
def rig(request: pytest.FixtureRequest) -> Iterator[Callable[..., Rig]]:
    """Makes a rig with a pool of so many pages of 64 KiB, and further options of `vattd start`.

    The simulated GPU's granularity is that small too, so that thousands of pages are quickly written.
    """
    with ExitStack() as stack:

        def make(pool_pages: int, *options: str) -> Rig:
            arguments = ["--pool-max", str(pool_pages * PAGE), "--headroom", "1MiB", *options]
            if request.param == "host":
                return Rig("host", stack.enter_context(Vattd(*arguments)), {}, None)
            # Fresh memory is full of a byte that nobody wrote: a page lent without a scrub would show it.
            memory_bytes = pool_pages * PAGE + (1 << 30)
            world = World(memory_bytes=memory_bytes, granularity_bytes=PAGE, fresh_byte=0xA5)
            stack.enter_context(world)
            vattd = stack.enter_context(Vattd(*arguments, device="0", env=world.env()))
            return Rig("cudasim", vattd, dict(world.env()), world)

        yield make


def result_of(engine: subprocess.Popen[str]) -> dict[str, Any]:
    """What the worker printed last."""
    out, _ = engine.communicate(timeout=300)
    assert engine.returncode == 0, out
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer
