"""What a step costs the engine: batch 256 with nothing to map, and 256 slots that cross a page in the same step.

`python -m benchmarks.steps` runs against a vattd of its own on host memory and prints a table. Times depend on the
machine and on what else it does; compare numbers of one run only.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.daemon import Vattd
from vattention import KVCache, KVCacheSpec, Layout, Session
from vattention.engine_client import EngineClient

BATCH = 256
STEPS = 2000
STEP_S = 0.010
PAGE = 64 << 10
# 32 layers of one head of 32 fp16 elements: 4 KiB a token, 16 tokens a page where all layers share one.
SHAPE: dict[str, Any] = {"num_layers": 32, "num_kv_heads": 1, "head_size": 32, "dtype": torch.float16}


def main() -> None:
    table = Table(title=f"A step of {BATCH} slots, host memory, pages of {PAGE >> 10} KiB", title_justify="left")
    for column in ("layout", "what", "median", "p99", "most", "RPCs by the engine's thread"):
        table.add_column(column, justify="left" if column in ("layout", "what") else "right")
    with Vattd("--pool-max", "3GiB", "--page-size", str(PAGE)) as vattd:
        for layout in Layout:
            spec = KVCacheSpec(**SHAPE, max_batch_size=BATCH, max_context_length=4096, layout=layout)
            with (
                Session.connect("bench", socket_dir=vattd.socket_dir) as session,
                KVCache(session, spec) as cache,
                RemoteCalls() as calls,
            ):
                for what, run in (("nothing to map", idle_steps), ("decode, all cross at once", decode)):
                    times = run(cache, calls)
                    table.add_row(layout.value, what, *(f"{value:.0f} us" for value in figures(times)), str(calls.mine))
    Console().print(table)


def idle_steps(cache: KVCache, calls: RemoteCalls) -> list[float]:
    """The same lengths again and again: all that a step costs when the pages are there."""
    lengths = [100 + slot % 16 for slot in range(BATCH)]
    cache.step(lengths)
    cache.settle()
    calls.forget()
    return [timed(lambda: cache.step(lengths)) for _ in range(STEPS)]


def decode(cache: KVCache, calls: RemoteCalls) -> list[float]:
    """Every slot one token longer in each step, all of them at the same place in a page."""
    lengths = [160] * BATCH
    cache.step(lengths)
    cache.settle()
    calls.forget()
    times = []
    for tokens in range(161, 361):
        lengths = [tokens] * BATCH
        began_s = time.perf_counter()
        times.append(timed(lambda lengths=lengths: cache.step(lengths)))  # type: ignore[misc]
        time.sleep(max(0.0, began_s + STEP_S - time.perf_counter()))  # the model
    return times


def timed(call: Callable[[], object]) -> float:
    """Microseconds."""
    begin_s = time.perf_counter()
    call()
    return (time.perf_counter() - begin_s) * 1e6


def figures(times: list[float]) -> tuple[float, float, float]:
    return statistics.median(times), statistics.quantiles(times, n=100)[98], max(times)


class RemoteCalls:
    """Counts what this thread says to vattd, leaving the library's own threads out."""

    NAMES = ("lease", "return_pages", "report_usage")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._originals = {name: getattr(EngineClient, name) for name in self.NAMES}

    @property
    def mine(self) -> int:
        return self._counts[threading.get_ident()]

    def forget(self) -> None:
        self._counts.clear()

    def __enter__(self) -> RemoteCalls:
        for name, original in self._originals.items():
            setattr(EngineClient, name, self._counting(original))
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self._originals.items():
            setattr(EngineClient, name, original)

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._counts[threading.get_ident()] += 1
            return original(*arguments, **options)

        return counted


if __name__ == "__main__":
    main()
