"""What Sarathi-Serve's calls of `vattention` cost it: the tests' double of it, at a batch of 32 on host memory.

`python -m benchmarks.sarathi` runs against a vattd of its own and prints a table. The double writes its tokens and
computes nothing, so its iterations are far shorter than a model's: what counts is how long the calls take. Times depend
on the machine and on what else it does; compare numbers of one run only.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

import vattention
from tests.daemon import Vattd
from tests.vattention.sarathi.block_space_manager import Accounting, BlockSpaceManager
from tests.vattention.sarathi.cache_engine import CacheEngine
from tests.vattention.sarathi.config import CacheConfig, ModelConfig
from tests.vattention.sarathi.engine import Engine
from tests.vattention.sarathi.scheduler import SarathiScheduler
from tests.vattention.sarathi.sequence import Scheduled
from tests.vattention.sarathi.sequence import Sequence as Request

PAGE = 64 << 10
ROWS = 32
# 2 KiB a token in all layers; 128 tokens a page in per_layer.
MODEL = ModelConfig(num_layers=2, num_kv_heads=4, head_size=64, max_model_len=512)
MEMORY = 16 << 20
REQUESTS = 80
CHUNK = 256

Result = TypeVar("Result")


def main() -> None:
    torch.set_num_threads(1)  # the double's copies are small; a second thread would wait on a busy machine
    table = Table(
        title=f"Sarathi's loop, {REQUESTS} requests, {ROWS} rows, {PAGE >> 10} KiB pages", title_justify="left"
    )
    for column in ("backend", "iterations", "iterations/s", "calls: median", "p99", "most", "of the loop", "preempted"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    with Vattd("--page-size", str(PAGE), "--pool-max", str(4 * MEMORY)) as vattd:
        os.environ["VATTD_SOCKET_DIR"] = str(vattd.socket_dir)
        serve(CacheConfig(MODEL, PAGE, MEMORY, ROWS))  # the double makes its tokens' values once
        for name, megacache, is_async, layout in (
            ("fa_vattn", False, True, "per_layer"),
            ("fa_vattn_sync", False, False, "per_layer"),
            ("fa_vattn_megacache", True, True, "per_layer"),
            ("fa_vattn, fused", False, True, "fused"),
        ):
            os.environ["VATTENTION_LAYOUT"] = layout
            table.add_row(name, *serve(CacheConfig(MODEL, PAGE, MEMORY, ROWS, megacache, is_async)))
    Console(width=120).print(table)


def serve(config: CacheConfig) -> list[str]:
    cache_engine = TimedCacheEngine(config)
    manager = BlockSpaceManager(config.block_size, config.num_gpu_blocks, Accounting.CORRECTED)
    engine = Engine(SarathiScheduler(manager, ROWS, CHUNK), cache_engine, on_short=print, checks=False)
    draw = random.Random(1)
    for seq_id in range(REQUESTS):
        engine.add(Request(seq_id, draw.randint(20, 300), draw.randint(20, 200)))
    begin_s = time.perf_counter()
    while engine.is_busy:
        cache_engine.begin()
        engine.step()
    loop_s = time.perf_counter() - begin_s
    vattention.cleanup()
    times = cache_engine.times_us
    return [
        str(engine.step_count),
        f"{engine.step_count / loop_s:.0f}",
        f"{statistics.median(times):.0f} us",
        f"{statistics.quantiles(times, n=100)[98]:.0f} us",
        f"{max(times):.0f} us",
        f"{sum(times) / 1e4 / loop_s:.0f} %",
        str(engine.preempted_count),
    ]


class TimedCacheEngine(CacheEngine):
    """Knows how long the calls of each iteration took together."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.times_us: list[float] = []

    def begin(self) -> None:
        """Another iteration begins."""
        self.times_us.append(0.0)

    def num_free_blocks(self) -> int:
        return self._timed(super().num_free_blocks)

    def step(self, scheduled: Sequence[Scheduled]) -> None:
        self._timed(partial(super().step, scheduled))

    def free_request(self, sequence: Request) -> None:
        self._timed(partial(super().free_request, sequence))

    def _timed(self, call: Callable[[], Result]) -> Result:
        begin_s = time.perf_counter()
        try:
            return call()
        finally:
            self.times_us[-1] += (time.perf_counter() - begin_s) * 1e6


if __name__ == "__main__":
    main()
