"""fork() in another process, where a child may do what it likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Runs `body` in a forked child of a process that has pages mapped, and passes on how it went.
SCRIPT = """
import os, sys, threading, traceback, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of fork() beside threads, which is what is tested
from pathlib import Path
import torch
from vatt.errors import ForkedSession
{setup}

def refused(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ForkedSession as error:
        assert "spawn" in str(error)
    else:
        raise SystemExit(f"{{call}} was not refused")

def slabs_mapped():
    return sum("vattd-slab" in line for line in open("/proc/self/maps"))

for _ in range({forks}):
    child = os.fork()
    if child == 0:
        try:
            {child}
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
{parent}
print("parent done")
"""

CACHE = """
from tests.vattention.host_pages import HostPages
from vattention import KVCache, KVCacheSpec
host = HostPages()
cache = KVCache(host, KVCacheSpec(2, 2, 32, torch.float32, 2, 1000))
slot = cache.acquire_slot()
cache.grow(slot, 100)
cache.layer(0)[0][slot, :100] = 7.0
"""


def run(setup: str, child: str, parent: str = "", forks: int = 1) -> None:
    script = SCRIPT.format(setup=setup, child="; ".join(child.strip().splitlines()), parent=parent, forks=forks)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "parent done\n"), done.stderr


def test_a_forked_child_finds_every_object_closed_and_nothing_mapped() -> None:
    run(
        CACHE,
        """
assert slabs_mapped() == 0
refused(cache.grow, slot, 200)
refused(cache.layer, 0)
refused(cache.free_slot, slot)
refused(cache.stats)
refused(host.pages.take, [1])
refused(host.pages.put, [])
refused(host.mapper.reserve, 4096)
refused(host.mapper.unmap, 4096, 1)
cache.close()
host.pages.close()
host.mapper.close()
""",
        parent="assert cache.layer(0)[0][slot, :100].sum() == 7 * 100 * 2 * 32; cache.close(); host.close()",
    )


def test_no_fork_falls_between_a_mapping_and_its_advice() -> None:
    run(
        CACHE
        + """
stop = threading.Event()
def churn():
    other = cache.acquire_slot()
    while not stop.is_set():
        cache.grow(other, 1000)
        cache.shrink(other, 0)
churning = threading.Thread(target=churn)
churning.start()
""",
        "assert slabs_mapped() == 0",
        parent="stop.set(); churning.join(); cache.close(); host.close()",
        forks=50,
    )


def test_a_child_of_a_connected_process_is_told_how_to_connect(vattd_socket_dir: Path) -> None:
    run(
        f"""
from vattention import Session
where = Path({str(vattd_socket_dir)!r})
session = Session.connect("fork", socket_dir=where)
pages = session.lease(4)
""",
        """
refused(session.lease, 1)
refused(session.give_back, pages)
refused(session.reattach)
refused(Session.connect, "fork", socket_dir=where)
session.close()
""",
        parent="session.give_back(pages); session.give_back(session.lease(1)); session.close()",
    )


def test_a_child_forked_before_the_first_session_connects_its_own(vattd_socket_dir: Path) -> None:
    run(
        f"from vattention import Session\nwhere = Path({str(vattd_socket_dir)!r})",
        """
session = Session.connect("fork", socket_dir=where)
session.give_back(session.lease(3))
session.close()
""",
        parent="session = Session.connect('fork', socket_dir=where); session.close()",
    )


@pytest.mark.parametrize("module", ["vattention", "vattention.vmm", "vattention.layout", "vattention.config"])
def test_importing_the_face_pulls_in_neither_torch_nor_grpc(module: str) -> None:
    check = f"import sys, {module}; sys.exit(bool({{'torch', 'grpc'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
