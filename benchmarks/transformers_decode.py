"""A decode step of `generate` with DynamicCache, StaticCache and VattCache, and what each process holds at its peak.

The model is a random llama: its attention is the larger part of a step, as it is where contexts are long. Caches are
filled with random keys and values and decode in turn, step by step, so that what else the machine does meets all of
them. Compare ratios of one run: times depend on the machine. Where others use it too, CPU time says more than time
that passed, and most with --threads 1, since threads that wait for each other spin.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from tests.daemon import Vattd
from vattention import Layout, Session
from vattention.integrations.transformers import VattCache

MIB = 1 << 20
WARM_UP_STEPS = 2
STEPS_TO_THE_PEAK = 8
LAYOUTS = {layout.value: layout for layout in (Layout.PER_LAYER, Layout.PER_HEAD, Layout.FUSED)}
KINDS = ("dynamic", "static", *LAYOUTS)


@dataclass(frozen=True, slots=True)
class Cell:
    """So many rows that hold so many tokens each, in caches that could hold `context` a row."""

    batch: int
    tokens: int
    context: int
    layers: int
    heads: int
    head_size: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values in float32."""
        return self.batch * self.tokens * self.layers * 2 * self.heads * self.head_size * 4

    def model(self) -> Any:
        torch.manual_seed(0)
        width = self.heads * self.head_size
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
        )
        model: Any = LlamaForCausalLM(config)
        return model.eval()

    def fill(self, cache: Cache) -> None:
        torch.manual_seed(1)
        shape = (self.batch, self.heads, self.tokens, self.head_size)
        for layer in range(self.layers):
            cache.update(torch.randn(shape), torch.randn(shape), layer)


@contextmanager
def cache_of(kind: str, cell: Cell, model: Any, socket_dir: Path) -> Iterator[Cache]:
    """A cache of this kind, filled."""
    with ExitStack() as stack:
        cache: Cache
        if kind == "dynamic":
            cache = DynamicCache(config=model.config)
        elif kind == "static":
            cache = StaticCache(config=model.config, max_cache_len=cell.context)
        else:
            session = stack.enter_context(Session.connect("bench", socket_dir=socket_dir))
            vatt_cache = VattCache.for_model(
                model,
                session,
                max_batch_size=cell.batch,
                max_context_length=cell.context,
                layout=LAYOUTS[kind],
            )
            cache = stack.enter_context(vatt_cache)
        cell.fill(cache)
        yield cache


@dataclass(frozen=True, slots=True)
class Step:
    """What one decode step took, in milliseconds."""

    passed_ms: float
    cpu_ms: float  # of all threads

    @classmethod
    def of(cls, model: Any, cache: Cache, tokens: torch.Tensor) -> Step:
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        model(input_ids=tokens, past_key_values=cache)
        return cls((time.perf_counter() - begin_s) * 1e3, (time.process_time() - begin_cpu_s) * 1e3)


@torch.inference_mode()
def measured_steps(cell: Cell, steps: int, socket_dir: Path) -> dict[str, list[Step]]:
    """Each step, after those that warm up, by kind of cache; all caches live at once, and take turns."""
    model = cell.model()
    next_tokens = torch.arange(cell.batch)[:, None]
    taken: dict[str, list[Step]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        caches = {kind: stack.enter_context(cache_of(kind, cell, model, socket_dir)) for kind in KINDS}
        for step in range(WARM_UP_STEPS + steps):
            for kind, cache in caches.items():
                measured = Step.of(model, cache, next_tokens)
                if step >= WARM_UP_STEPS:
                    taken[kind].append(measured)
    return taken


@torch.inference_mode()
def peak_bytes(cell: Cell, kind: str, steps: int, socket_dir: Path) -> int:
    """The most resident memory of this process so far, after some steps: torch, the model, and one cache."""
    model = cell.model()
    with cache_of(kind, cell, model, socket_dir) as cache:
        for _ in range(steps):
            Step.of(model, cache, torch.arange(cell.batch)[:, None])
    # Not ru_maxrss, which begins with what the process was forked from.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) << 10


def peak_of_a_process(cell: Cell, kind: str, steps: int, threads: int, socket_dir: Path) -> int:
    child = json.dumps([kind, dataclasses.astuple(cell), str(socket_dir)])
    options = ["--steps", str(steps), "--threads", str(threads), "--child", child]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transformers_decode", *options],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout.splitlines()[-1])


def time_rows(cell: Cell, taken: dict[str, list[Step]]) -> Iterator[list[str]]:
    """A row a kind: best and median time, median CPU time, and how often each goes into DynamicCache's."""
    figures = {
        kind: (
            min(step.passed_ms for step in steps),
            statistics.median(step.passed_ms for step in steps),
            statistics.median(step.cpu_ms for step in steps),
        )
        for kind, steps in taken.items()
    }
    for kind, own in figures.items():
        ratios = [theirs / mine for theirs, mine in zip(figures["dynamic"], own, strict=True)]
        yield [
            f"{cell.batch} x {cell.tokens}",
            kind,
            *(f"{figure:.1f} ms" for figure in own),
            *(f"{ratio:.2f}x" for ratio in ratios),
        ]


def times_table(cells: list[Cell], steps: int, socket_dir: Path) -> Table:
    ratios = "ratios: how many times as fast as dynamic, by best, median, and median CPU time"
    table = Table(title="A decode step", caption=ratios)
    for column in ("rows x tokens", "cache", "best", "median", "CPU", "by best", "by median", "by CPU"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for cell in cells:
        click.echo(f"{steps} steps of {cell.batch} x {cell.tokens}", err=True)
        for row in time_rows(cell, measured_steps(cell, steps, socket_dir)):
            table.add_row(*row)
        table.add_section()
    return table


def peaks_table(cells: list[Cell], threads: int, socket_dir: Path) -> Table:
    table = Table(title="Peak resident memory of a process, torch and model included")
    for column in ("rows x tokens", "KV", *KINDS):
        table.add_column(column, justify="right")
    for cell in cells:
        click.echo(f"memory of {cell.batch} x {cell.tokens}", err=True)
        peaks = [peak_of_a_process(cell, kind, STEPS_TO_THE_PEAK, threads, socket_dir) for kind in KINDS]
        sizes = [f"{size_bytes / MIB:.0f} MiB" for size_bytes in (cell.kv_bytes, *peaks)]
        table.add_row(f"{cell.batch} x {cell.tokens}", *sizes)
    return table


@click.command(help=__doc__)
@click.option("--tokens", multiple=True, default=[2048, 4096, 8192], show_default=True, type=click.IntRange(1))
@click.option("--batch", multiple=True, default=[1, 4], show_default=True, type=click.IntRange(1))
@click.option("--context", default=16384, show_default=True, help="Tokens a row may hold; StaticCache reserves them.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(1), help="Of each cache, in turn.")
@click.option("--layers", default=8, show_default=True, type=click.IntRange(1))
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--head-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--page-size", default="64KiB", show_default=True, help="Of vattd's pages.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, type=click.IntRange(1))
@click.option("--measure", multiple=True, default=["times", "memory"], type=click.Choice(["times", "memory"]))
@click.option("--child", hidden=True)
def main(
    tokens: tuple[int, ...],
    batch: tuple[int, ...],
    context: int,
    steps: int,
    layers: int,
    heads: int,
    head_size: int,
    page_size: str,
    threads: int,
    measure: tuple[str, ...],
    child: str | None,
) -> None:
    torch.set_num_threads(threads)
    if child is not None:
        kind, shape, at = json.loads(child)
        print(peak_bytes(Cell(*shape), kind, steps, Path(at)))
        return
    if max(tokens) + WARM_UP_STEPS + steps > context:
        raise click.UsageError(f"{max(tokens)} tokens and {steps} steps do not fit a context of {context}: --context")
    cells = [Cell(rows, held, context, layers, heads, head_size) for rows in sorted(batch) for held in sorted(tokens)]
    # Three caches of vattd's at once, and what their rows take ahead of tokens.
    pool_bytes = 4 * max(cell.kv_bytes for cell in cells) + (256 << 20)
    console = Console(width=110)
    console.print(f"{layers} layers of {heads} heads of {head_size}, fp32; pages of {page_size}; threads: {threads}")
    with Vattd("--pool-max", str(pool_bytes), "--page-size", page_size) as vattd:
        if "times" in measure:
            console.print(times_table(cells, steps, vattd.socket_dir))
        if "memory" in measure:
            console.print(peaks_table(cells, threads, vattd.socket_dir))


if __name__ == "__main__":
    main()
