"""What `vattctl top` costs: CPU, and bytes that it sends to its terminal (over ssh, to the network).

`python -m benchmarks.top` starts a vattd of its own on host memory, engines that lease and return at random, and top in
a pseudo-terminal at its default interval. CPU is top's own, user and system, from /proc, after its first seconds. Times
depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import pty
import random
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks.leasing import SESSIONS_A_PROCESS, cpu_s
from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb

SIZES = ((80, 24), (200, 50))
# Tenants and sessions.
CROWDS = ((0, 0), (1, 1), (2, 2), (64, 256))
SETTLE_S = 5.0
MOST_PAGES = 40
POOL = "256MiB"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a top that ran for `wall_s`."""

    wall_s: float
    cpu_s: float
    sent_bytes: int
    start_s: float  # from the command to the first frame


def lease_at_random(directory: Path, names: list[str], per_s: float, is_ready: Event, is_over: Event) -> None:
    """A process of engines, so that every frame differs from the one before."""
    with ExitStack() as stack:
        engines = [
            stack.enter_context(RawEngine(Sockets(directory), name, client_name="benchmark/1")) for name in names
        ]
        is_ready.set()
        chance, held = random.Random(1), [list[pb.LeasedRun]() for _ in engines]
        while not is_over.wait(1 / per_s):
            at = chance.randrange(len(engines))
            try:
                if held[at]:
                    engines[at].give_back(held[at])
                    held[at] = []
                else:
                    held[at] = engines[at].lease(chance.randrange(1, MOST_PAGES))
            except grpc.RpcError:  # the pool is full: another will give back
                continue


@contextmanager
def crowd(tenants: int, sessions: int, per_s: float) -> Iterator[Vattd]:
    """A vattd with so many sessions, which lease and return so often in all."""
    names = [f"team-{number % tenants:02}" for number in range(sessions)]
    shares = [names[at : at + SESSIONS_A_PROCESS] for at in range(0, sessions, SESSIONS_A_PROCESS)]
    spawning = multiprocessing.get_context("spawn")
    is_over = spawning.Event()
    with Vattd("--pool-max", POOL) as vattd:
        processes = []
        for share in shares:
            is_ready = spawning.Event()
            arguments = (vattd.sockets.directory, share, per_s / len(shares), is_ready, is_over)
            processes.append(spawning.Process(target=lease_at_random, args=arguments))
            processes[-1].start()
            is_ready.wait()
        try:
            yield vattd
        finally:
            is_over.set()
            for process in processes:
                process.join()


def drain(fd: int, until_s: float, words: bytes = b"") -> int:
    """Reads what comes until then, or until the words come; how many bytes it was."""
    count, tail = 0, b""
    while (left_s := until_s - time.monotonic()) > 0:
        if not select.select([fd], [], [], left_s)[0]:
            break
        try:
            came = os.read(fd, 65536)
        except OSError:  # EIO: top has ended
            break
        count += len(came)
        tail = tail[-len(words) :] + came
        if words and words in tail:
            break
    return count


def measure(vattd: Vattd, width: int, height: int, seconds: float) -> Cost:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    command = [sys.executable, "-m", "vattctl", "top", "--socket-dir", str(vattd.socket_dir)]
    env = {**os.environ, "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    begin_s = time.monotonic()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True) as top:
        os.close(theirs)
        drain(ours, begin_s + 30, b"SESSION")
        start_s = time.monotonic() - begin_s
        drain(ours, time.monotonic() + SETTLE_S)
        before_s, began_s = cpu_s(top.pid), time.monotonic()
        sent_bytes = drain(ours, began_s + seconds)
        cost = Cost(time.monotonic() - began_s, cpu_s(top.pid) - before_s, sent_bytes, start_s)
        os.write(ours, b"q")
        drain(ours, time.monotonic() + 1)
    os.close(ours)
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each measurement")
    parser.add_argument("--leases", type=float, default=40.0, help="leases and returns a second")
    arguments = parser.parse_args()
    table = Table(title="vattctl top at its default interval", title_justify="left")
    for title in ("tenants", "sessions", "terminal", "of a core", "sent", "first frame after"):
        table.add_column(title, justify="right")
    for tenants, sessions in CROWDS:
        with crowd(tenants, sessions, arguments.leases) as vattd:
            for width, height in SIZES:
                cost = measure(vattd, width, height, arguments.seconds)
                table.add_row(
                    str(tenants),
                    str(sessions),
                    f"{width}x{height}",
                    f"{cost.cpu_s / cost.wall_s:.2%}",
                    f"{cost.sent_bytes / cost.wall_s:,.0f} B/s",
                    f"{cost.start_s:.2f} s",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
