"""What leases cost the daemon: at saturation, in pools of any size, and beside sessions that do nothing.

`python -m benchmarks.leasing` starts vattds of its own on host memory and on the simulated driver, where every page has
a descriptor of its own. "CPU" is the daemon's, user and system, from /proc. The bare loop beside it is the least that
the same traffic costs in Python: two empty RPCs, and a packet with as many descriptors, on a server that does nothing.
Times depend on the machine and on what else it does; compare numbers of one run only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table

from benchmarks.bare_server import BareServer
from tests.cudasim import MIB, World
from tests.daemon import Vattd, pages_of
from tests.raw_engine import RawEngine, close_all
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb

CLIENTS = 4
BATCH = 64
PAGE = 4096
POOLS = (1_000, 10_000, 100_000, 1_000_000)
SESSIONS = (1, 16, 64, 256)
SESSIONS_A_PROCESS = 64
WAITING = (0, 256, 1024)
WAITING_A_SESSION = 256
# For two, of the pool of 100,000 in which leases wait.
TOO_MANY_PAGES = 60_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of `cycles` times a batch leased and returned."""

    cycles: int
    wall_s: float
    cpu_s: float  # the server's

    @property
    def pages_a_second(self) -> float:
        return self.cycles * BATCH / self.wall_s

    @property
    def cpu_us_a_page(self) -> float:
        return self.cpu_s / self.cycles / BATCH * 1e6

    @property
    def cores(self) -> float:
        return self.cpu_s / self.wall_s


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cycle(engine: RawEngine, *, pulls: bool) -> None:
    runs = engine.lease(BATCH)
    if pulls:
        _, fds = engine.handles.pull([leased.run for leased in runs])
        close_all(fds)
    engine.give_back(runs)


def work(directory: Path, seconds: float, pulls: bool, start_s: float) -> int:
    """One client: cycles until the time is over, from `start_s` on the monotonic clock."""
    with RawEngine(Sockets(directory)) as engine:
        cycle(engine, pulls=pulls)
        while time.monotonic() < start_s:
            time.sleep(0.001)
        done = 0
        while time.monotonic() < start_s + seconds:
            cycle(engine, pulls=pulls)
            done += 1
    return done


def saturated(server_pid: int, directory: Path, seconds: float, *, pulls: bool) -> Cost:
    """`CLIENTS` processes at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CLIENTS, mp_context=context) as pool:
        start_s = time.monotonic() + 4.0  # when all have been started
        futures = [pool.submit(work, directory, seconds, pulls, start_s) for _ in range(CLIENTS)]
        time.sleep(max(0.0, start_s - time.monotonic()))
        before_s = cpu_s(server_pid)
        time.sleep(seconds)
        used_s = cpu_s(server_pid) - before_s
        return Cost(sum(future.result() for future in futures), seconds, used_s)


def alone(vattd: Vattd, engine: RawEngine, cycles: int) -> Cost:
    """One client; what the daemon used for it."""
    for _ in range(20):
        cycle(engine, pulls=False)
    before_s, begin_s = cpu_s(vattd.pid), time.monotonic()
    for _ in range(cycles):
        cycle(engine, pulls=False)
    return Cost(cycles, time.monotonic() - begin_s, cpu_s(vattd.pid) - before_s)


@contextmanager
def filled_pool(page_count: int) -> Iterator[Vattd]:
    """With every page made."""
    size = str(page_count * PAGE)
    options = ["--pool-max", size, "--pool-min", size, "--page-size", str(PAGE), "--headroom", "256KiB"]
    with Vattd(*options) as vattd:
        while pages_of(vattd.status())["unbacked"]:
            time.sleep(0.05)
        yield vattd


def hold_sessions(directory: Path, first: int, count: int, ready: object, done: object) -> None:
    """Sessions of as many tenants that do nothing, in a process of their own."""
    with ExitStack() as stack:
        for number in range(first, first + count):
            stack.enter_context(RawEngine(Sockets(directory), f"idle-{number}"))
        ready.release()  # type: ignore[attr-defined]
        done.wait()  # type: ignore[attr-defined]


@contextmanager
def idle_sessions(directory: Path, count: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Semaphore(0), context.Event()
    firsts = range(0, count, SESSIONS_A_PROCESS)
    holders = [
        context.Process(
            target=hold_sessions, args=(directory, first, min(SESSIONS_A_PROCESS, count - first), ready, done)
        )
        for first in firsts
    ]
    for holder in holders:
        holder.start()
    try:
        for _ in holders:
            ready.acquire()
        yield
    finally:
        done.set()
        for holder in holders:
            holder.join()


def by_saturation(seconds: float) -> Table:
    table = Table(title=f"{CLIENTS} clients, batches of {BATCH} pages", title_justify="left")
    for name in ("", "pages/s", "CPU us/page", "cores", "CPU to bare"):
        table.add_column(name, justify="left" if not name else "right")
    options = ["--pool-max", "256MiB", "--headroom", "32MiB", "--page-size", str(64 << 10)]
    world = World(memory_bytes=1024 * MIB, granularity_bytes=64 << 10)
    for name, pulls in (("host", False), ("cudasim, with descriptors", True)):
        with ExitStack() as stack:
            if pulls:
                stack.enter_context(world)
            env, device = (world.env(), "0") if pulls else ({}, "host")
            vattd = stack.enter_context(Vattd(*options, device=device, env=env))
            ours = saturated(vattd.pid, vattd.sockets.directory, seconds, pulls=pulls)
        with BareServer() as bare:
            least = saturated(bare.pid, bare.directory, seconds, pulls=pulls)
        for label, cost in ((name, ours), ("  bare loop", least)):
            ratio = f"{cost.cpu_us_a_page / least.cpu_us_a_page:.2f}" if cost is ours else "1"
            table.add_row(label, f"{cost.pages_a_second:,.0f}", f"{cost.cpu_us_a_page:.1f}", f"{cost.cores:.2f}", ratio)
        half = 0.5 / (ours.cpu_us_a_page * 1e-6)
        table.add_row("  at half a core", f"{half:,.0f}", "", "0.50", "")
    return table


def by_pool_size(cycles: int) -> Table:
    table = Table(title="One client, by pages in the pool", title_justify="left")
    for name in ("pages", "CPU us/page", "to the smallest"):
        table.add_column(name, justify="right")
    first: float | None = None
    for page_count in POOLS:
        with filled_pool(page_count) as vattd, RawEngine(vattd.sockets) as engine:
            cost = alone(vattd, engine, cycles).cpu_us_a_page
        first = first or cost
        table.add_row(f"{page_count:,}", f"{cost:.1f}", f"{cost / first:.2f}")
    return table


def by_sessions(cycles: int) -> Table:
    table = Table(title="One active client, by attached sessions, each of a tenant of its own", title_justify="left")
    for name in ("sessions", "CPU us/page", "to one"):
        table.add_column(name, justify="right")
    first: float | None = None
    for count in SESSIONS:
        with filled_pool(100_000) as vattd, idle_sessions(vattd.sockets.directory, count - 1):
            with RawEngine(vattd.sockets) as engine:
                cost = alone(vattd, engine, cycles).cpu_us_a_page
        first = first or cost
        table.add_row(f"{count:,}", f"{cost:.1f}", f"{cost / first:.2f}")
    return table


@contextmanager
def waiting_leases(vattd: Vattd, count: int) -> Iterator[None]:
    """New requests of another tenant, for more than is free; a session may have `WAITING_A_SESSION` of them."""
    with ExitStack() as stack:
        hoarder = stack.enter_context(RawEngine(vattd.sockets, "hoarder"))
        hoarder.lease(TOO_MANY_PAGES)
        calls = []
        for first in range(0, count, WAITING_A_SESSION):
            engine = stack.enter_context(RawEngine(vattd.sockets, "waiting"))
            for number in range(first, min(first + WAITING_A_SESSION, count)):
                request = pb.LeasePagesRequest(
                    key=engine.key,
                    request_id=f"w{number}",
                    page_count=TOO_MANY_PAGES,
                    purpose=pb.LEASE_PURPOSE_ADMIT,
                    wait=Duration(seconds=600),
                )
                calls.append(engine.stub.LeasePages.future(request))
        while vattd.status().pool.waiting_pages < count * TOO_MANY_PAGES:
            time.sleep(0.05)
        yield
        for call in calls:
            call.cancel()


def by_waiting(cycles: int) -> Table:
    table = Table(title="One active client, by leases of another tenant that wait", title_justify="left")
    for name in ("waiting", "CPU us/page", "to none"):
        table.add_column(name, justify="right")
    first: float | None = None
    for count in WAITING:
        with filled_pool(100_000) as vattd, waiting_leases(vattd, count):
            with RawEngine(vattd.sockets) as engine:
                cost = alone(vattd, engine, cycles).cpu_us_a_page
        first = first or cost
        table.add_row(f"{count:,}", f"{cost:.1f}", f"{cost / first:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long clients saturate the daemon")
    parser.add_argument("--cycles", type=int, default=2000, help="of one client, for each pool and number of sessions")
    options = parser.parse_args()
    console = Console()
    console.print(by_saturation(options.seconds))
    console.print(by_pool_size(options.cycles))
    console.print(by_sessions(options.cycles))
    console.print(by_waiting(options.cycles))


if __name__ == "__main__":
    main()
