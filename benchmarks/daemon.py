"""What the daemon costs on this machine: start, memory when idle, commit rate, and round trips.

`python -m benchmarks.daemon` starts a vattd of its own on host memory and prints a table. Times depend on the machine
and on what else it does; compare numbers of one run only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from vatt.pages import Extent
from vatt.v1 import vatt_pb2 as pb
from vattention.vmm import open_physical

GIB = 1 << 30
STARTS = 5
COMMIT_BYTES = 2 * GIB
ROUND_TRIPS = 500
LEASE_PAGES = 12_000
PAGE = 64 << 10


def rss_anon_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise LookupError("the kernel shows no RssAnon")


def start_seconds() -> list[float]:
    """From the command to the line that says it serves."""
    times = []
    for _ in range(STARTS):
        begin_s = time.perf_counter()
        with Vattd("--pool-min", "0", "--pool-max", "1GiB"):
            times.append(time.perf_counter() - begin_s)
    return times


def commit_rate(page_size_bytes: int) -> float:
    """GiB/s of the host driver's create, in one call of its own process."""
    driver = open_physical("host", page_size_bytes)
    extent = Extent(0, COMMIT_BYTES // page_size_bytes)
    begin_s = time.perf_counter()
    driver.create(extent)
    rate = COMMIT_BYTES / GIB / (time.perf_counter() - begin_s)
    driver.close()
    return rate


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile."""
    times = []
    for _ in range(ROUND_TRIPS):
        begin_s = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin_s) * 1e6)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


@contextmanager
def attached() -> Iterator[tuple[Vattd, RawEngine]]:
    with Vattd("--pool-max", "1GiB") as vattd, RawEngine(vattd.sockets) as engine:
        yield vattd, engine


def main() -> None:
    table = Table(title="vattd on host memory", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    starts = start_seconds()
    table.add_row(f"start to serving, median of {STARTS}", f"{statistics.median(starts):.2f} s")
    with Vattd("--pool-max", "1GiB") as idle:
        table.add_row("RssAnon, idle", f"{rss_anon_bytes(idle.pid) / (1 << 20):.1f} MiB")
    for size in (PAGE, 2 << 20):
        table.add_row(f"commit, pages of {size >> 10} KiB, one call", f"{commit_rate(size):.2f} GiB/s")
    with attached() as (vattd, engine):
        before = vattd.status().pool.created_pages_total
        begin_s = time.perf_counter()
        runs = engine.lease(LEASE_PAGES)
        seconds = time.perf_counter() - begin_s
        made = vattd.status().pool.created_pages_total - before
        table.add_row(f"a lease of {LEASE_PAGES} pages, none made yet", f"{made * PAGE / GIB / seconds:.2f} GiB/s")
        engine.give_back(runs)

    with attached() as (vattd, engine):

        def empty() -> None:
            engine.stub.ReportUsage(pb.ReportUsageRequest(key=engine.key, mapped_pages=0))

        def lease_and_return() -> None:
            engine.give_back(engine.lease(16))

        for name, call in (("round trip, empty", empty), ("lease and return 16 pages (2 trips)", lease_and_return)):
            median, late = microseconds(call)
            table.add_row(name, f"{median:.0f} us, p99 {late:.0f} us")
        table.add_row("RssAnon, then", f"{rss_anon_bytes(vattd.pid) / (1 << 20):.1f} MiB")
    Console().print(table)


if __name__ == "__main__":
    main()
