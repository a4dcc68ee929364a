"""Threads that each use slots of their own, in two caches of one session, while pages are short and the keepers run."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.vattention.host_pages import HostPages
from tests.vattention.token_values import SPEC, check, write
from vatt.errors import PoolExhausted
from vattention.kvcache import KVCache
from vattention.layout import Layout

THREADS = 4
SLOTS_EACH = 2
Pieces = list[tuple[int, int, int]]  # seed, first token, end


class User:
    """One thread's requests: what it wrote is what it reads, whatever the others do."""

    def __init__(self, cache: KVCache, seed: int) -> None:
        self.cache = cache
        self.random = random.Random(seed)
        self.held: dict[int, Pieces] = {}

    def length(self, slot: int) -> int:
        return self.held[slot][-1][2] if self.held[slot] else 0

    def move(self) -> None:
        choices = [self.grow, self.grow, self.grow, self.shrink, self.free, self.look] if self.held else []
        if len(self.held) < SLOTS_EACH:
            choices += [self.acquire, self.fork] if self.held else [self.acquire]
        try:
            self.random.choice(choices)()
        except PoolExhausted:
            if self.held:
                self.free()

    def slot(self) -> int:
        return self.random.choice(sorted(self.held))

    def acquire(self) -> None:
        self.held[self.cache.acquire_slot(self.random.choice([None, 50, 300]))] = []

    def fork(self) -> None:
        source = self.slot()
        tokens = self.random.randint(0, self.length(source))
        self.held[self.cache.fork_slot(source, tokens)] = self.cut(self.held[source], tokens)

    def grow(self) -> None:
        slot = self.slot()
        had = self.length(slot)
        tokens = min(SPEC.max_context_length, had + self.random.choice([1, 1, 2, 50, 200]))
        self.cache.grow(slot, tokens)
        if tokens > had:
            seed = self.random.randrange(50)
            write(self.cache, slot, seed, had, tokens)
            self.held[slot].append((seed, had, tokens))

    def shrink(self) -> None:
        slot = self.slot()
        tokens = self.random.randint(0, self.length(slot))
        self.cache.shrink(slot, tokens)
        self.held[slot] = self.cut(self.held[slot], tokens)

    def free(self) -> None:
        slot = self.slot()
        self.check(slot)
        self.cache.free_slot(slot)
        del self.held[slot]

    def look(self) -> None:
        self.check(self.slot())
        self.cache.memory_report()
        self.cache.release_idle()

    def check(self, slot: int) -> None:
        for seed, first, end in self.held[slot]:
            check(self.cache, slot, seed, end, start=first)

    @staticmethod
    def cut(pieces: Pieces, tokens: int) -> Pieces:
        return [(seed, first, min(end, tokens)) for seed, first, end in pieces if first < tokens]


@contextmanager
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("value_head_size", [None, 5], ids=["K and V alike", "K and V of different sizes"])
def test_threads_that_use_slots_of_their_own_do_not_disturb_each_other(
    value_head_size: int | None, request: pytest.FixtureRequest
) -> None:
    host = HostPages(page_count=200)
    specs = [
        dataclasses.replace(SPEC, layout=layout, value_head_size=value_head_size, max_batch_size=THREADS * SLOTS_EACH)
        for layout in (Layout.FUSED, Layout.PER_LAYER)
    ]
    caches = [KVCache(host, spec) for spec in specs]
    stop_s = time.monotonic() + request.config.getoption("--seconds")
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        users = [User(cache, seed) for cache in caches]
        try:
            while time.monotonic() < stop_s and not failures:
                users[seed % 2].move()
                users[1 - seed % 2].move()
        except BaseException as failure:  # noqa: BLE001  raised below, in the test's thread
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(THREADS)]
    with eager_switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    for cache in caches:
        cache.settle()
        assert cache.needed_pages(np.zeros(THREADS * SLOTS_EACH, dtype=np.int64)) == 0
    assert host.mapper.mapped_pages * 4096 == sum(cache.stats().mapped_bytes for cache in caches)
    for cache in caches:
        cache.close()
    host.close()
    assert (host.leased_pages, host.mapper.mapped_pages) == (0, 0)
