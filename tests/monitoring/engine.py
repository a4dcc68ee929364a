"""An engine under load, without a model: requests of a recorded trace, as long as they were, as often as they came.

It is the real library on a real vattd. A request is admitted with its prompt, waits for its memory as long as it has
patience, grows by a token a step, and ends. When pages are short the youngest ends, and comes again later.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from vatt.errors import (
    Closed,
    DaemonUnreachable,
    InvalidRequest,
    LimitExceeded,
    OutOfMemory,
    PoolExhausted,
    SessionFenced,
)
from vattctl.replay.trace import Request, Trace, read_trace
from vattention import KVCache, KVCacheSpec, Layout, Session

SPEC = KVCacheSpec(
    num_layers=4,
    num_kv_heads=2,
    head_size=64,
    dtype=torch.float16,
    max_batch_size=128,
    max_context_length=4096,
    layout=Layout.FUSED,
)
STEP_S = 0.05
ADMITTERS = 6
SHORT = (PoolExhausted, LimitExceeded, OutOfMemory, SessionFenced, DaemonUnreachable)


@dataclass(slots=True)
class Running:
    request: Request
    length: int


class Engine:
    """The main thread steps; others admit. `lock` guards who runs."""

    def __init__(self, session: Session, cache: KVCache, patience_s: float) -> None:
        self._cache, self._patience_s = cache, patience_s
        self._page_size_bytes = session.page_size_bytes
        self._lock = threading.Lock()
        self._running: dict[int, Running] = {}  # by slot, the oldest first
        self._wanted_back = 0
        self.due: queue.SimpleQueue[Request] = queue.SimpleQueue()
        session.on_pressure = self._give_up

    def admit_for_ever(self) -> None:
        while True:
            request = self.due.get()
            try:
                slot = self._cache.admit_slot(request.prompt_tokens, wait_s=self._patience_s)
            except (*SHORT, InvalidRequest):  # the latter when all slots are in use
                continue
            except Closed:
                return
            with self._lock:
                self._running[slot] = Running(request, request.prompt_tokens)

    def step(self) -> None:
        with self._lock:
            self._end_wanted()
            for slot, running in list(self._running.items()):
                running.length += 1
                if running.length > running.request.length_tokens:
                    self._end(slot)
            while not self._hold():
                self._preempt()

    def _hold(self) -> bool:
        lengths = np.zeros(SPEC.max_batch_size, dtype=np.int64)
        for slot, running in self._running.items():
            lengths[slot] = running.length
        try:
            self._cache.step(lengths)
        except SHORT:
            return not self._running
        return True

    def _give_up(self, page_count: int) -> None:
        """on_pressure: the next step ends requests for so many pages."""
        self._wanted_back = page_count

    def _end_wanted(self) -> None:
        wanted, self._wanted_back = self._wanted_back, 0
        while wanted > 0 and self._running:
            running = self._preempt()
            wanted -= running.length * SPEC.token_bytes // self._page_size_bytes + 1

    def _preempt(self) -> Running:
        slot = next(reversed(self._running))
        running = self._running[slot]
        self._end(slot)
        self.due.put(running.request)
        return running

    def _end(self, slot: int) -> None:
        del self._running[slot]
        self._cache.free_slot(slot)


def arrivals(trace: Trace, speed: float) -> Iterator[tuple[float, Request]]:
    """When each comes, from now on; the trace begins anew when it is over."""
    begin_s = 0.0
    for request in cycle(trace.requests):
        if request is trace.requests[0]:
            begin_s = time.monotonic()
        yield begin_s + request.arrival_s / speed, request


def run(engine: Engine, trace: Trace, speed: float, ending: threading.Event) -> None:
    coming = arrivals(trace, speed)
    due_s, request = next(coming)
    while not ending.wait(STEP_S):
        while due_s <= time.monotonic():
            engine.due.put(request)
            due_s, request = next(coming)
        engine.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-dir", type=Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--trace", default="azure_conv")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--patience", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    trace = read_trace(options.trace).cut_to(SPEC.max_context_length)
    with Session.connect(options.tenant, socket_dir=options.socket_dir) as session, KVCache(session, SPEC) as cache:
        engine = Engine(session, cache, options.patience)
        for _ in range(ADMITTERS):
            threading.Thread(target=engine.admit_for_ever, daemon=True).start()
        print("attached", session.session_id, flush=True)
        run(engine, trace, options.speed, ending)
        session.on_pressure = None
    sys.stdout.flush()


if __name__ == "__main__":
    main()
