"""An engine without a model: it leases pages, maps them, fills them with its mark, checks them, and returns them.

Run as a process of its own by the tests beside it. Every line it prints is one word of progress, the last one JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from vatt.errors import DaemonUnreachable, PoolExhausted, TokenRefused
from vatt.pages import Extent
from vattention import LeasePurpose, Session

SLOTS = 64
MARK = ctypes.c_uint64 * 4
# What a straggler fills pages with. A page that an engine filled with it has marks as well.
STRAGGLERS_BYTE = b"\xee"


class Worker:
    """Random growth over one address range of SLOTS rows, with the mark of every mapped page remembered."""

    def __init__(self, session: Session, row_pages: int, seed: int) -> None:
        self.session = session
        self.page = session.page_size_bytes
        self.row_pages = row_pages
        self.random = random.Random(seed)
        self.range = session.mapper.reserve(SLOTS * row_pages * self.page)
        self.rows: list[list[tuple[int, ...]]] = [[] for _ in range(SLOTS)]  # the marks of each row's pages
        self.serial = 0
        self.pages_written = self.pages_checked = self.refused = self.most_kernel_mappings = self.most_runs = 0
        self.most_mapped = 0
        self.lock = threading.RLock()  # on_pressure comes on the library's thread
        self.pressed = 0

    def address(self, row: int, place: int) -> int:
        return self.range.address + (row * self.row_pages + place) * self.page

    def step(self) -> str:
        """One random move; its name."""
        row = self.random.randrange(SLOTS)
        free = self.row_pages - len(self.rows[row])
        if free and self.random.random() < 0.6:
            try:
                self.grow(row, self.random.randint(1, free))
            except (PoolExhausted, DaemonUnreachable):  # the latter on a machine so busy that vattd is late
                self.refused += 1
                self.empty(self.random.randrange(SLOTS))
                return "refused"
            return "grown"
        self.empty(row)
        return "emptied"

    def grow(self, row: int, page_count: int) -> None:
        with self.lock:
            self.take_in(row, self.session.lease(page_count))

    def admit(self, page_count: int, wait_s: float) -> float:
        """A new row, waited for without holding anything up; how long it took."""
        begin_s = time.monotonic()
        extents = self.session.lease(page_count, purpose=LeasePurpose.ADMIT, wait_s=wait_s)
        took_s = time.monotonic() - begin_s
        with self.lock:
            row = min(range(SLOTS), key=lambda row: len(self.rows[row]))
            self.empty(row)
            self.take_in(row, extents)
        return took_s

    def give_up(self, page_count: int) -> None:
        """on_pressure: rows are emptied until that is enough."""
        with self.lock:
            for row in self.random.sample(range(SLOTS), SLOTS):
                if page_count <= 0:
                    break
                page_count -= len(self.rows[row])
                self.empty(row)
            self.pressed += 1

    @property
    def held_pages(self) -> int:
        return sum(map(len, self.rows))

    def take_in(self, row: int, extents: list[Extent]) -> None:
        place = len(self.rows[row])
        self.session.mapper.map(self.address(row, place), extents)
        for extent in extents:
            for page_id in extent.page_ids:
                self.write(row, place, page_id)
                place += 1
        self.most_mapped = max(self.most_mapped, self.session.mapper.mapped_pages)

    def write(self, row: int, place: int, page_id: int) -> None:
        """The whole page gets a byte of ours, its two ends and its middle a mark that nobody else writes."""
        self.serial += 1
        mark = (os.getpid(), page_id, self.serial, (self.serial * 0x9E3779B97F4A7C15) & (1 << 64) - 1)
        address = self.address(row, place)
        ctypes.memset(address, self.serial & 0xFF, self.page)
        for at in self.mark_places(address):
            MARK.from_address(at)[:] = list(mark)
        self.rows[row].append(mark)
        self.pages_written += 1

    def mark_places(self, address: int) -> tuple[int, int, int]:
        return address, address + self.page // 2, address + self.page - ctypes.sizeof(MARK)

    def check(self, row: int) -> None:
        for place, mark in enumerate(self.rows[row]):
            address = self.address(row, place)
            for at in self.mark_places(address):
                found = tuple(MARK.from_address(at))
                if found != mark:
                    raise AssertionError(f"page {mark[1]}: wrote {mark}, found {found}")
            filler = ctypes.string_at(address + self.page // 4, 64)
            if filler != bytes([mark[2] & 0xFF]) * 64:
                raise AssertionError(f"page {mark[1]}: its filling is another's")
            self.pages_checked += 1

    def empty(self, row: int) -> None:
        if not self.rows[row]:
            return
        self.check(row)
        extents = self.session.mapper.unmap(self.address(row, 0), len(self.rows[row]))
        self.rows[row].clear()
        self.session.give_back(extents)

    def count_mappings(self) -> None:
        kernel = len(Path("/proc/self/maps").read_text().splitlines())
        self.most_kernel_mappings = max(self.most_kernel_mappings, kernel)
        self.most_runs = max(self.most_runs, self.session.mapper.run_count(self.range))

    def finish(self) -> dict[str, int]:
        for row in range(SLOTS):
            self.empty(row)
        self.session.mapper.free(self.range)
        names = ("pages_written", "pages_checked", "refused", "most_mapped", "most_kernel_mappings", "most_runs")
        return {name: getattr(self, name) for name in names}


def straggle(extents: list[Extent], page: int) -> None:
    """A hostile child that outlives its parent: it writes where its parent's pages were, for as long as it lives."""
    slabs = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_slab(f"/proc/self/fd/{fd}")]
    views = [mmap.mmap(fd, e.page_count * page, offset=e.index * page) for fd in slabs for e in extents]
    print("straggler", os.getpid(), flush=True)
    while True:
        for view in views:
            view[:] = STRAGGLERS_BYTE * len(view)
        time.sleep(0.01)  # many of them share this machine


def is_slab(fd_path: str) -> bool:
    """By the name that /proc shows."""
    with suppress(OSError):
        return "vattd-slab" in os.readlink(fd_path)
    return False


def connect(tenant: str, socket_dir: Path) -> Session:
    """As soon as a vattd runs: it may be killed in this moment."""
    for _ in range(100):
        try:
            return Session.connect(tenant, socket_dir=socket_dir)
        except (DaemonUnreachable, TokenRefused):
            time.sleep(0.1)
    return Session.connect(tenant, socket_dir=socket_dir)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-dir", type=Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--row-pages", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="else until SIGTERM")
    parser.add_argument("--progress", action="store_true", help="a line for every step")
    parser.add_argument("--fork", action="store_true", help="leave a child behind that writes where our pages were")
    options = parser.parse_args()
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    print("started", flush=True)
    session = connect(options.tenant, options.socket_dir)
    print("attached", session.session_id, flush=True)
    worker = Worker(session, options.row_pages, options.seed)
    if options.fork:
        extents = session.lease(4, purpose=LeasePurpose.ADMIT, wait_s=60)
        if os.fork() == 0:
            straggle(extents, worker.page)
    end_s = time.monotonic() + options.seconds
    steps = 0
    while time.monotonic() < end_s and not ending.is_set():
        word = worker.step()
        steps += 1
        if steps % 50 == 0:
            worker.count_mappings()
        if options.progress:
            print(word, flush=True)
    result = worker.finish()
    session.close()
    print(json.dumps({**result, "steps": steps}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
