"""What a scrape of /metrics costs, with 64 tenants and 256 sessions: how long it takes, and what it takes from leases.

`python -m benchmarks.scrape` starts vattds of its own on host memory and scrapes them over HTTP on loopback as
Prometheus does, a connection each. Sessions are real ones, of four processes. How long a scrape holds the event loop is
measured in vattd, around the reading that it takes there: by the clock, and by the CPU time of the loop's thread, which
leaves out what other processes took meanwhile. Times depend on the machine and on what else it does; compare numbers of
one run only.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table

from benchmarks.leasing import SESSIONS_A_PROCESS, cpu_s
from tests.daemon import Vattd, patched
from tests.raw_engine import RawEngine
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb

TENANTS = 64
SESSIONS = 256  # the first process has one of each tenant
PAGE = 64 << 10
MIN_PAGES = 16
POOL_PAGES = TENANTS * MIN_PAGES
HELD_PAGES = 2  # by each session
GOAL_S = 0.020
# As Prometheus asks.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
# In vattd: a line for each reading, with how long the event loop was at it, and how long it computed.
NOTE_READINGS = """
import time
from vattd.metrics_reading import Readings

read = Readings._now
notes = open({path!r}, "a", buffering=1)

def timed(self, *args):
    began_s, began_cpu_s = time.perf_counter(), time.thread_time()
    reading = read(self, *args)
    notes.write(f"{{time.perf_counter() - began_s}} {{time.thread_time() - began_cpu_s}}\\n")
    return reading

Readings._now = timed
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of scrapes one after the other."""

    times_s: list[float]
    held_s: list[float]  # the event loop, by each
    computed_s: list[float]  # there
    cpu_s: float  # vattd's, by each
    text: bytes
    sent_bytes: int


def name_of(session: int) -> str:
    return f"tenant-{session % TENANTS:02}"


def hold_sessions(directory: Path, first: int, waits: bool, all_hold: Any, ready: Any, done: Any) -> None:
    """Sessions that lease, report and are refused something; with `waits` each tenant's first also waits for more."""
    with ExitStack() as stack:
        engines = []
        for number in range(first, first + SESSIONS_A_PROCESS):
            engine = stack.enter_context(RawEngine(Sockets(directory), name_of(number)))
            engine.lease(HELD_PAGES, purpose=pb.LEASE_PURPOSE_ADMIT)
            engine.report(mapped_pages=1, token_bytes=PAGE // 2, static_reservation_bytes=4 * PAGE, paged16_bytes=PAGE)
            too_many = pb.LeasePagesRequest(
                key=engine.key, request_id="x", page_count=2 * POOL_PAGES, purpose=pb.LEASE_PURPOSE_GROW
            )
            engine.stub.LeasePages.future(too_many).exception()
            engines.append(engine)
        all_hold.wait()
        calls = [wait_for_min(engine) for engine in engines if waits and first == 0]
        ready.release()
        done.wait()
        for call in calls:
            call.cancel()


def wait_for_min(engine: RawEngine) -> Any:
    request = pb.LeasePagesRequest(
        key=engine.key,
        request_id="w",
        page_count=MIN_PAGES - HELD_PAGES * SESSIONS // TENANTS,
        purpose=pb.LEASE_PURPOSE_ADMIT,
        wait=Duration(seconds=600),
    )
    return engine.stub.LeasePages.future(request)


@contextmanager
def crowded(*, waits: bool) -> Iterator[tuple[Vattd, Path]]:
    """A vattd with all tenants configured and all sessions attached, and where it notes how long readings take.

    With `waits` somebody without a promise has taken what was free, and every tenant waits for a part of its min.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tenants, notes = folder / "tenants.toml", folder / "notes"
        limits = f'min = "{MIN_PAGES * PAGE}"\nmax = "{POOL_PAGES * PAGE}"\nweight = 2\n'
        tenants.write_text("".join(f"[tenants.{name_of(number)}]\n{limits}" for number in range(TENANTS)))
        options = ["--pool-max", str(POOL_PAGES * PAGE), "--page-size", str(PAGE), "--headroom", "0"]
        options += ["--config", str(tenants), "--metrics-address", "127.0.0.1:0", "--reclaim-within", "1h"]
        vattd = stack.enter_context(Vattd(*options, env=patched(folder, NOTE_READINGS.format(path=str(notes)))))
        if waits:
            hoarder = stack.enter_context(RawEngine(vattd.sockets, "hoarder"))
            hoarder.lease(POOL_PAGES - HELD_PAGES * SESSIONS)
        context = multiprocessing.get_context("spawn")
        all_hold, ready, done = context.Barrier(SESSIONS // SESSIONS_A_PROCESS), context.Semaphore(0), context.Event()
        signs = (all_hold, ready, done)
        holders = [
            context.Process(target=hold_sessions, args=(vattd.sockets.directory, first, waits, *signs))
            for first in range(0, SESSIONS, SESSIONS_A_PROCESS)
        ]
        for holder in holders:
            holder.start()
            stack.callback(holder.join)
        stack.callback(done.set)
        for _ in holders:
            ready.acquire()
        yield vattd, notes


def scrape(url: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=10) as answer:
        return bytes(answer.read())


def cost_of(vattd: Vattd, notes: Path, count: int, pause_s: float) -> Cost:
    url, times_s = vattd.ready["metrics"], []
    scrape(url)
    before_s, before_notes = cpu_s(vattd.pid), len(notes.read_text().splitlines())
    for _ in range(count):
        time.sleep(pause_s)
        began_s = time.perf_counter()
        body = scrape(url)
        times_s.append(time.perf_counter() - began_s)
    readings = [line.split() for line in notes.read_text().splitlines()[before_notes:]]
    held_s, computed_s = ([float(figure) for figure in column] for column in zip(*readings, strict=True))
    return Cost(times_s, held_s, computed_s, (cpu_s(vattd.pid) - before_s) / count, gzip.decompress(body), len(body))


def milliseconds(times_s: list[float]) -> str:
    median, late = statistics.median(times_s), statistics.quantiles(times_s, n=100)[98]
    return f"{median * 1e3:.2f} ms, p99 {late * 1e3:.2f}"


def scrapes_table(count: int, pause_s: float) -> Table:
    table = Table(title=f"{count} scrapes, {TENANTS} tenants, {SESSIONS} sessions", title_justify="left")
    for name in ("", "all content", "every tenant waits"):
        table.add_column(name, justify="left" if not name else "right")
    costs = []
    for waits in (False, True):
        with crowded(waits=waits) as (vattd, notes):
            costs.append(cost_of(vattd, notes, count, pause_s))
    table.add_row("a scrape", *(milliseconds(cost.times_s) for cost in costs))
    table.add_row(f"  under {GOAL_S * 1e3:.0f} ms", *(f"{share(cost.times_s):.1%}" for cost in costs))
    table.add_row("  of it on the event loop", *(milliseconds(cost.held_s) for cost in costs))
    table.add_row("    computing", *(milliseconds(cost.computed_s) for cost in costs))
    table.add_row("  CPU of vattd's", *(f"{cost.cpu_s * 1e3:.1f} ms" for cost in costs))
    lines = [[line for line in cost.text.splitlines() if not line.startswith(b"#")] for cost in costs]
    table.add_row("samples", *(f"{len(one):,}" for one in lines))
    table.add_row("bytes", *(f"{len(cost.text):,}" for cost in costs))
    table.add_row("  as sent", *(f"{cost.sent_bytes:,}" for cost in costs))
    return table


def share(times_s: list[float]) -> float:
    return sum(time_s < GOAL_S for time_s in times_s) / len(times_s)


def keep_scraping(url: str, pause_s: float, scraping: Any, ends: Any) -> None:
    """From a process of its own, whenever `scraping` is set."""
    while not ends.is_set():
        if scraping.wait(0.1):
            scrape(url)
            time.sleep(pause_s)


def leases_table(cycles: int, pause_s: float, rounds: int = 5) -> Table:
    """The two are measured in turns, so that what else the machine does hits both."""
    context = multiprocessing.get_context("spawn")
    scraping, ends = context.Event(), context.Event()
    times: dict[bool, list[float]] = {False: [], True: []}
    with crowded(waits=False) as (vattd, _), RawEngine(vattd.sockets, "busy") as engine:
        scraper = context.Process(target=keep_scraping, args=(vattd.ready["metrics"], pause_s, scraping, ends))
        scraper.start()
        for _ in range(rounds):
            for on in (False, True):
                (scraping.set if on else scraping.clear)()
                time.sleep(0.3)
                times[on] += lease_times_s(engine, cycles // rounds)
        ends.set()
        scraping.set()
        scraper.join()
    title = f"A lease of 16 pages and its return, with a scrape every {pause_s * 1e3:.0f} ms beside it"
    table = Table(title=title, title_justify="left")
    for name in ("", "without", "with", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    for name, figure in (("median", statistics.median), ("p99", lambda t: statistics.quantiles(t, n=100)[98])):
        without, beside = figure(times[False]), figure(times[True])
        table.add_row(name, f"{without * 1e6:.0f} us", f"{beside * 1e6:.0f} us", f"{beside / without:.2f}")
    return table


def lease_times_s(engine: RawEngine, cycles: int) -> list[float]:
    times_s = []
    for _ in range(cycles):
        began_s = time.perf_counter()
        engine.give_back(engine.lease(16))
        times_s.append(time.perf_counter() - began_s)
    return times_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two scrapes")
    parser.add_argument("--cycles", type=int, default=3000, help="leases, with scrapes beside them and without")
    options = parser.parse_args()
    console = Console()
    console.print(scrapes_table(options.scrapes, options.pause))
    console.print(leases_table(options.cycles, 1.0))
    console.print(leases_table(options.cycles, options.pause))


if __name__ == "__main__":
    main()
