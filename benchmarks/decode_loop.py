"""How long the steps of a decode loop wait for mapping: in the background, against in the step. A projection.

`python -m benchmarks.decode_loop` runs azure_conv, its arrivals four times as fast, with Llama-3-8B's geometry in the
fused layout and a 40 GiB pool, in real time: every 25 ms one token for each running request. The driver is simulated
(tests/cudasim): real cuda-python, published A100 latencies for each call, no GPU. Pages are 64 KiB that stand for
2 MiB, so everything counted in pages and calls is as on the device; what a GPU would add (its own contention with
running kernels, another driver's latencies) is not in it.

While the model computes, a simulated kernel reads the last pages of running requests: unmapping one under it would end
the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.cudasim import MIB, World
from tests.cudasim.kernel import Reads, launch
from tests.daemon import Vattd
from vattctl.replay.trace import Request, read_trace
from vattention import KVCache, KVCacheSpec, Layout, Session, kvcache
from vattention.vmm.cuda_call import call
from vattention.vmm.cuda_event import ContextFence

STEP_S = 0.025
KERNEL_S = 0.020
KERNEL_ROWS = 8
SPEED = 4
SLOTS = 256
PAGE = 64 << 10
TOKEN_BYTES = 4096  # 128 KiB / 32, as a page is 2 MiB / 32
POOL_PAGES = 20480
RESERVE = 0.02  # left free for growth when a request is admitted
MODES = {
    "background": "mapped ahead in the background",
    "step": "mapped in the step, pages of finished slots kept",
    "eager": "mapped in the step, unmapped when a request ends",
}


@dataclass
class Loop:
    """A serving loop in real time."""

    cache: KVCache
    mode: str
    requests: deque[Request]
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(SLOTS, dtype=np.int64))
    left: np.ndarray = field(default_factory=lambda: np.zeros(SLOTS, dtype=np.int64))
    waits_s: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    def run(self, seconds: float) -> dict[str, float]:
        begin_s = time.perf_counter()
        step = 0
        while time.perf_counter() - begin_s < seconds:
            self.leave()
            self.wait_for_pages()
            self.compute()
            self.admit(step * STEP_S * SPEED)
            step += 1
            time.sleep(max(0.0, begin_s + step * STEP_S - time.perf_counter()))
        stats = self.cache.stats()
        total_s = time.perf_counter() - begin_s
        return {
            "wait_percent": 100 * sum(self.waits_s) / total_s,
            "median_us": statistics.median(self.waits_s) * 1e6,
            "p99_us": statistics.quantiles(self.waits_s, n=100)[98] * 1e6,
            "most_us": max(self.waits_s) * 1e6,
            "running": statistics.fmean(self.running),
            "mapped": stats.mapped_pages_total,
            "unmapped": stats.unmapped_pages_total,
            "steps": step,
        }

    def leave(self) -> None:
        ended = (self.left == 0) & (self.lengths > 0)
        self.lengths[ended] = 0

    def wait_for_pages(self) -> None:
        wanted = self.lengths + (self.lengths > 0)
        self.left -= wanted > 0
        began_s = time.perf_counter()
        self.cache.step(wanted)
        if self.mode == "eager":
            self.cache.release_idle()
        self.waits_s.append(time.perf_counter() - began_s)
        self.lengths = wanted
        self.running.append(int((wanted > 0).sum()))

    def compute(self) -> None:
        row_bytes = self.cache.geometry.bands[0].row_bytes
        start = self.cache.tensors()[0].data_ptr()
        last_pages = [
            Reads(start + row * row_bytes + (int(self.lengths[row]) * TOKEN_BYTES - 1) // PAGE * PAGE, PAGE)
            for row in np.flatnonzero(self.lengths)[:KERNEL_ROWS]
        ]
        if last_pages:
            launch(0, *last_pages, duration_s=KERNEL_S)

    def admit(self, now_s: float) -> None:
        """Requests that have come while the model computes are in the next step's batch."""
        while self.requests and self.requests[0].arrival_s <= now_s and (self.lengths == 0).any():
            needed = self.cache.needed_pages(self.lengths) + self.requests[0].prompt_tokens * TOKEN_BYTES // PAGE + 1
            if needed > POOL_PAGES * (1 - RESERVE):
                return
            request = self.requests.popleft()
            slot = self.cache.acquire_slot(request.prompt_tokens)
            self.lengths[slot] = request.prompt_tokens - 1
            self.left[slot] = request.output_tokens


def engine(mode: str, socket_dir: str, seconds: float) -> None:
    """The child: an engine in the simulated machine."""
    kvcache.torch_device = lambda device: torch.device("cpu")  # type: ignore[attr-defined]  # the CPU plays the GPU
    call("cuInit", 0)
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", 0))
    spec = KVCacheSpec(32, 1, 32, torch.float16, SLOTS, 8192, Layout.FUSED)
    requests = deque(read_trace("azure_conv").cut_to(8191).requests)
    with (
        Session.connect("bench", socket_dir=socket_dir) as session,
        KVCache(session, spec, fence=ContextFence(0), background=mode == "background") as cache,
    ):
        print(json.dumps(Loop(cache, mode, requests).run(seconds)))
        call("cuCtxSynchronize")


def measure(mode: str, seconds: float) -> dict[str, float]:
    """One mode, on a simulated machine of its own."""
    memory = POOL_PAGES * PAGE + 256 * MIB
    with World(memory_bytes=memory, granularity_bytes=PAGE, context_bytes=64 * MIB, latencies="a100") as world:
        pool = str(POOL_PAGES * PAGE)
        with Vattd("--pool-min", pool, "--pool-max", pool, device="0", env=world.env()) as vattd:
            while vattd.pages().get("clean", 0) + vattd.pages().get("dirty", 0) < POOL_PAGES:
                time.sleep(0.1)
            at = ["--socket-dir", str(vattd.socket_dir), "--seconds", str(seconds)]
            child = subprocess.run(
                [sys.executable, "-m", "benchmarks.decode_loop", "--engine", mode, *at],
                env={**os.environ, **world.env()},
                stdout=subprocess.PIPE,
                check=True,
            )
        if world.refused():
            raise RuntimeError(f"the simulated driver refused {world.refused()} calls")
    figures: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--socket-dir", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        engine(arguments.engine, arguments.socket_dir, arguments.seconds)
        return
    table = Table(
        title=f"azure_conv x{SPEED}, Llama-3-8B fused, {STEP_S * 1e3:.0f} ms steps for {arguments.seconds:.0f} s; "
        "simulated driver with A100 latencies: a projection",
        title_justify="left",
    )
    for column in ("how", "steps wait", "median", "p99", "most", "running", "mapped", "unmapped"):
        table.add_column(column, justify="left" if column == "how" else "right")
    for mode, name in MODES.items():
        figures = measure(mode, arguments.seconds)
        table.add_row(
            name,
            f"{figures['wait_percent']:.2f} %",
            *(f"{figures[key]:,.0f} us" for key in ("median_us", "p99_us", "most_us")),
            *(f"{figures[key]:,.0f}" for key in ("running", "mapped", "unmapped")),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
