"""An engine of one tenant that obeys lines on stdin and answers each with a line of JSON. Its memory is checked.

`admit N SECONDS` begins a request of N pages, waiting so long; `fill` begins requests until the pool is short; `grow N`
lets a request grow by N pages; `end N` and `end all` end the oldest ones; `stats`; `quit`.
When vattd asks for memory of running requests it ends the oldest ones, if it was started with --yields.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from vatt.errors import PoolExhausted, VattError
from vattention import KVCache, KVCacheSpec, Layout, Session, kvcache

PAGE_TOKENS = 1024
REQUEST_PAGES = 32  # the most of one request
MAX_REQUESTS = 64
FILL_PAGES = 16  # of a request that fills


class TenantEngine:
    """Requests as slots; a slot's first token of every page holds the slot's own mark."""

    def __init__(self, session: Session, cache: KVCache) -> None:
        self._session, self._cache = session, cache
        self._lock = threading.RLock()  # on_pressure comes on the library's thread
        self._pages_of: dict[int, int] = {}  # by slot, oldest first
        self._marks: dict[int, int] = {}
        self._serial = 0
        self.preempted = 0

    def admit(self, page_count: int, wait_s: float) -> dict[str, Any]:
        begin_s = time.monotonic()
        slot = self._cache.admit_slot(page_count * PAGE_TOKENS, wait_s=wait_s)
        took_s = time.monotonic() - begin_s
        with self._lock:
            self._serial += 1
            self._pages_of[slot], self._marks[slot] = 0, self._serial % 2000 + 1
            self._write(slot, page_count)
        return {"took_s": took_s}

    def fill(self) -> dict[str, Any]:
        try:
            while len(self._pages_of) < MAX_REQUESTS:
                self.admit(FILL_PAGES, 0.0)
        except PoolExhausted:
            pass
        return {"pages": self.held_pages}

    def grow(self, page_count: int) -> dict[str, Any]:
        with self._lock:
            slot = next(slot for slot, pages in self._pages_of.items() if pages + page_count <= REQUEST_PAGES)
            pages = self._pages_of[slot] + page_count
            self._cache.grow(slot, pages * PAGE_TOKENS)
            self._write(slot, pages)
        return {}

    def end(self, count: int) -> dict[str, Any]:
        with self._lock:
            for slot in list(self._pages_of)[:count]:
                self._end(slot)
        return {}

    def give_up(self, page_count: int) -> None:
        """on_pressure: the oldest requests end, until that is enough."""
        with self._lock:
            while page_count > 0 and self._pages_of:
                slot = next(iter(self._pages_of))
                page_count -= self._pages_of[slot]
                self._end(slot)
                self.preempted += 1

    def stats(self) -> dict[str, Any]:
        with self._lock:
            for slot in self._pages_of:
                self._check(slot)
            held = self.held_pages
        return {"pages": held, "leased": self._session.leased_pages, "preempted": self.preempted}

    @property
    def held_pages(self) -> int:
        return sum(self._pages_of.values())

    def _write(self, slot: int, page_count: int) -> None:
        k, v = self._cache.layer(0)
        for page in range(self._pages_of[slot], page_count):
            k[slot, page * PAGE_TOKENS] = self._marks[slot]
            v[slot, page * PAGE_TOKENS] = self._marks[slot]
        self._pages_of[slot] = page_count

    def _check(self, slot: int) -> None:
        k, v = self._cache.layer(0)
        at = torch.arange(self._pages_of[slot]) * PAGE_TOKENS
        for tensor in (k, v):
            assert bool((tensor[slot, at] == self._marks[slot]).all()), f"slot {slot} holds what it did not write"

    def _end(self, slot: int) -> None:
        self._check(slot)
        del self._pages_of[slot], self._marks[slot]
        self._cache.free_slot(slot)


def obey(engine: TenantEngine, line: str) -> dict[str, Any]:
    verb, *words = line.split()
    if verb == "admit":
        return engine.admit(int(words[0]), float(words[1]))
    if verb == "fill":
        return engine.fill()
    if verb == "grow":
        return engine.grow(int(words[0]))
    if verb == "end":
        return engine.end(MAX_REQUESTS if words[0] == "all" else int(words[0]))
    if verb == "stats":
        return engine.stats()
    raise ValueError(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-dir", type=Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--yields", action="store_true", help="end requests when vattd asks for their memory")
    options = parser.parse_args()
    kvcache.torch_device = lambda device: torch.device("cpu")  # type: ignore[attr-defined]  # it plays the GPU
    spec = KVCacheSpec(
        num_layers=1,
        num_kv_heads=1,
        head_size=16,
        dtype=torch.float16,
        max_batch_size=MAX_REQUESTS,
        max_context_length=REQUEST_PAGES * PAGE_TOKENS,
        layout=Layout.FUSED,
    )
    with Session.connect(options.tenant, socket_dir=options.socket_dir) as session, KVCache(session, spec) as cache:
        engine = TenantEngine(session, cache)
        if options.yields:
            session.on_pressure = engine.give_up
        print(json.dumps({"session_id": session.session_id}), flush=True)
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            try:
                answer = obey(engine, line)
            except VattError as error:
                answer = {"refused": error.reason}
            print(json.dumps(answer), flush=True)
        engine.end(MAX_REQUESTS)
    print(json.dumps({"ended": True}), flush=True)


if __name__ == "__main__":
    main()
