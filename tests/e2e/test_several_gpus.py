"""Two simulated GPUs with a vattd each, and processes that need pages on both at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack

from tests.cudasim import MIB, World
from tests.daemon import Vattd

POOL_PAGES = 32
ROUNDS = 30
SCRIPT = f"""
import json, sys
from vatt.errors import PoolExhausted
from vattention import Session, lease_on_all
uuids, directories = sys.argv[1].split(), sys.argv[2].split()
sessions = [Session.connect("ranks", device=u, socket_dir=d) for u, d in zip(uuids, directories, strict=True)]
done = refused = 0
while done < {ROUNDS}:
    try:
        held = lease_on_all(sessions, 20, wait_s=20)
    except PoolExhausted:
        refused += 1
        continue
    assert [sum(e.page_count for e in extents) for extents in held] == [20, 20]
    for session, extents in zip(sessions, held, strict=True):
        session.give_back(extents)
    done += 1
for session in sessions:
    session.close()
print(json.dumps({{"done": done, "refused": refused}}))
"""


def test_two_processes_that_lease_on_two_gpus_in_opposite_order_both_go_on() -> None:
    """Only one of them fits at a time: whoever waited while it held pages would wait for the other for ever."""
    world = World(devices=2, memory_bytes=1024 * MIB)
    with ExitStack() as stack:
        stack.enter_context(world)
        pool = ["--pool-max", f"{2 * POOL_PAGES}MiB"]
        vattds = [stack.enter_context(Vattd(*pool, device=number, env=world.env())) for number in ("0", "1")]
        uuids = [vattd.status().device.uuid for vattd in vattds]
        directories = [str(vattd.socket_dir) for vattd in vattds]
        processes = []
        for turn in (1, -1):
            arguments = [" ".join(uuids[::turn]), " ".join(directories[::turn])]
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments],
                env=os.environ | world.env(),
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
        assert [result["done"] for result in results] == [ROUNDS, ROUNDS]
        assert all(vattd.pages()["leased"] == 0 for vattd in vattds)
        assert world.refused() == 0
