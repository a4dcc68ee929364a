"""What the demo prints: texts and two tables, every figure measured in this run or said to be arithmetic."""

from __future__ import annotations

from textwrap import fill, indent
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.memory import Peak
from examples.messages import DYNAMIC, VATT, Ready, Result
from examples.smollm2 import NAME
from vatt.sizes import format_size

# Where the speed table has room to say what was read as well.
WIDE = 100


def print_plan(console: Console, ready: dict[str, Ready], pool_max: str, threads: int) -> None:
    for tenant, facts in ready.items():
        lengths = [length for batch in facts.batches for length in batch]
        span = f"{min(lengths)} to {max(lengths)} tokens"
        console.print(f"{tenant}: {len(lengths)} prompts of {span} in {len(facts.batches)} batches")
    static = sum(facts.static_reservation_bytes for facts in ready.values())
    console.print(
        f"One pool of at most {pool_max}; their static caches would take {format_size(static)}. "
        f"{threads} thread{'s' if threads > 1 else ''} an engine."
    )


def print_texts(console: Console, results: dict[str, list[Result]]) -> None:
    for tenant, runs in results.items():
        console.rule(f"what the model told {tenant}")
        for run in runs:
            if run.cache != VATT:
                continue
            for answer in run.answers:
                head = " ".join(answer.prompt.split())
                console.print(f"> {head}", style="bold", markup=False, no_wrap=True, overflow="ellipsis")
                for line in answer.text.splitlines():
                    console.print(indent(fill(line, console.width - 4), "  "), markup=False)
                console.print()


def print_memory(console: Console, ready: dict[str, Ready], status: dict[str, Any], peak: Peak) -> None:
    one = next(iter(ready.values()))
    static = sum(facts.static_reservation_bytes for facts in ready.values())
    pool = status["pool"]
    table = Table(title="Memory for keys and values", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("What")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Of static", justify="right", no_wrap=True)

    def row(what: str, size_bytes: int, style: str = "") -> None:
        table.add_row(what, format_size(size_bytes), f"{size_bytes / static:.1%}", style=style)

    row(
        f"{len(ready)} static reservations: {NAME}, {one.dtype}, {one.max_batch_size} rows of "
        f"{one.max_context_length} tokens each, {one.token_bytes:,} B a token (arithmetic)",
        static,
    )
    row("the pool's limit", pool["max_bytes"])
    row("most leased at one time, by the ledger", pool["peak_leased_bytes"])
    row("most mapped at one time, by the engines' reports", pool["peak_mapped_bytes"])
    row(f"most physical memory: {peak.counter.description}", peak.peak_bytes, "bold")
    console.rule("figures")
    console.print(table)
    console.print(
        f"{static / peak.peak_bytes:.1f} times less physical memory than static reservations "
        f"({peak.sample_count:,} samples, one every 10 ms).\n"
    )


def print_speed(console: Console, results: dict[str, list[Result]]) -> None:
    table = Table(title="Tokens written a second, reading the prompts included", title_justify="left", box=SIMPLE_HEAD)
    read_too = console.width >= WIDE
    rows = [
        _speed_row(tenant, [run for run in runs if run.cache == cache], name, first=cache == VATT, read_too=read_too)
        for tenant, runs in results.items()
        for cache, name in ((VATT, "vattd's pages"), (DYNAMIC, "DynamicCache"))
    ]
    counts = ["Prompts", "Read", "Written"] if read_too else ["Written"]
    headings = ["Tenant", *counts, "Cache", "Tok/s", "Time s", "CPU s"]
    for heading, cells in zip(headings, zip(*rows, strict=True), strict=True):
        if heading in ("Tenant", "Cache"):
            table.add_column(heading, overflow="fold")
        else:  # half a figure is a wrong one
            width = max(map(len, (heading, *cells)))
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _speed_row(tenant: str, runs: list[Result], cache_name: str, *, first: bool, read_too: bool) -> list[str]:
    """One cache's row; what holds for both caches of a tenant stands in the first only."""
    answers = [answer for run in runs for answer in run.answers]
    written = sum(len(answer.token_ids) for answer in answers)
    read = sum(answer.prompt_tokens for answer in answers)
    duration_s, cpu_s = sum(run.duration_s for run in runs), sum(run.cpu_s for run in runs)
    counts = [f"{len(answers)}", f"{read:,}", f"{written:,}"] if read_too else [f"{written:,}"]
    whose = [tenant, *counts]
    figures = [f"{written / duration_s:.1f}", f"{duration_s:,.1f}", f"{cpu_s:,.1f}"]
    return [*(whose if first else [""] * len(whose)), cache_name, *figures]
