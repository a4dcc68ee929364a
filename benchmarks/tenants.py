"""What several tenants gain from one pool, and who waits how long in a short one: recorded traces, vattd's own policy.

`python -m benchmarks.tenants` plays hours of requests in virtual time through vattd.policy and vattd.pressure: the KV
of Llama-3-8B in the fused layout, pages of 2 MiB, steps of 25 ms. Nothing here is measured on a GPU, and each run has
the same outcome. Beside vattd's pool stands a first-come one, which grants whatever fits and promises nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.tenancy.account import PAGE_SIZE_BYTES
from benchmarks.tenancy.engine import DELAY_S
from benchmarks.tenancy.replay import DELAYED_FRACTION
from benchmarks.tenancy.sizing import PROMISED_PART, Mix, Sizes, sizes_of
from benchmarks.tenancy.squeeze import LONG_MIN_PART, SQUEEZED_PART, Rule, Squeezed, squeeze
from benchmarks.tenancy.workload import LONG_CONTEXT, NAMES

# By the number of tenants, what the pool may need of what the split needs.
GOALS = {2: 0.87, 3: 0.75, 4: 0.70}
# The most that a tenant with a min may wait, 99 % of its requests.
GOAL_P99_S = 20
SQUEEZED = (("azure_conv", "azure_code", "mooncake_conv"), ("azure_conv", "azure_code", "arxiv_long"))
SHORT_NAMES = {"azure_conv": "conv", "azure_code": "code", "mooncake_conv": "mooncake", "arxiv_long": "arxiv"}

SIZES_NOTE = (
    f"The least memory with which at most {DELAYED_FRACTION:.0%} of each tenant's requests wait longer than "
    f"{DELAY_S:g} s for it. The split is static, in proportion to the tenants' peaks, which it knows. With mins: "
    f"{PROMISED_PART:.0%} of the pool is promised, in that proportion too. GiB are means over the seeds; ratios, to "
    "the split, go from the least to the most.\n"
)
SQUEEZED_NOTE = (
    f"Goal: p99 under {GOAL_P99_S} s for a tenant with a min. The long one's is {LONG_MIN_PART:.0%} of the pool, those "
    "of others are what each uses on average. What others use within their mins the long one cannot have: a request "
    "that is larger than the rest waits until they use less, and all behind it wait as well. To be sure of such a "
    "request it needs a min that covers it; where that and the others' mins do not fit the pool together, one must "
    "choose."
)

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--seeds", type=int, default=2, help="hours that are sized: as recorded, then otherwise arranged"
    )
    parser.add_argument("--tenants", type=int, choices=sorted(GOALS), help="size pools of so many only; default: all")
    parser.add_argument("--minutes", type=float, default=60.0, help="of each trace: the first ones")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that play at the same time")
    options = parser.parse_args()
    if options.seeds < 1 or options.minutes < 1:
        parser.error("at least one seed, and one minute")
    counts = [options.tenants] if options.tenants else sorted(GOALS)
    console = Console()
    with ProcessPoolExecutor(options.processes) as pool:

        def each_seed(task: Callable[..., T], seeds: int, names: tuple[str, ...], *rest: object) -> list[Future[T]]:
            return [pool.submit(task, Mix(names, seed, options.minutes), *rest) for seed in range(seeds)]

        # The longest first, so that no process is left alone with one.
        sizes = {
            names: each_seed(sizes_of, options.seeds, names)
            for count in reversed(counts)
            for names in itertools.combinations(NAMES, count)
        }
        # A pool of one size is played fast: an hour more.
        squeezed = {
            names: {rule: each_seed(squeeze, options.seeds + 1, names, rule) for rule in Rule} for names in SQUEEZED
        }
        for count in counts:
            console.print(sizes_table(count, {names: results(sizes[names]) for names in sizes if len(names) == count}))
        console.print(SIZES_NOTE, highlight=False)
        for names, by_rule in squeezed.items():
            console.print(squeezed_table(names, {rule: results(futures) for rule, futures in by_rule.items()}))
        console.print(SQUEEZED_NOTE, highlight=False)


def sizes_table(count: int, found: dict[tuple[str, ...], list[Sizes]]) -> Table:
    table = Table(title=f"{count} tenants: goal {GOALS[count]:.2f} of the split", title_justify="left")
    table.add_column("tenants")
    for name in ("split\nGiB", "first\ncome\nGiB", "vattd\nGiB", "vattd\nratio", "with mins\nratio"):
        table.add_column(name, justify="right")
    for names, sizes in found.items():
        table.add_row(
            combined(names),
            mean_gib(s.split_pages for s in sizes),
            mean_gib(s.first_come_pages for s in sizes),
            mean_gib(s.vattd_pages for s in sizes),
            span([s.vattd_pages / s.split_pages for s in sizes], 2),
            span([s.with_mins_pages / s.split_pages for s in sizes], 2),
        )
    return table


def squeezed_table(names: tuple[str, ...], by_rule: dict[Rule, list[Squeezed]]) -> Table:
    runs = by_rule[Rule.FIRST_COME]  # all rules have the same pool
    size, largest = mean_gib(run.capacity_pages for run in runs), mean_gib(run.largest_pages for run in runs)
    table = Table(
        title=f"{combined(names)} in {SQUEEZED_PART:.0%} of their peak: {size} GiB (largest request {largest} GiB)",
        title_justify="left",
    )
    for column in ("", "tenant", "min\nGiB", "p99 wait s", "delayed %"):
        table.add_column(column, justify="left" if column in ("", "tenant") else "right")
    for rule, runs in by_rule.items():
        for number, name in enumerate(names):
            outcomes = [run.outcomes[number] for run in runs]
            promised = [run.guarantees[number].min_pages for run in runs]
            table.add_row(
                "" if number else rule.value,
                SHORT_NAMES[name] + (" (long)" if name in LONG_CONTEXT else ""),
                mean_gib(promised) if any(promised) else "-",
                span([outcome.p99_s for outcome in outcomes], 1),
                span([100 * outcome.delayed_fraction for outcome in outcomes], 1),
                end_section=number == len(names) - 1,
            )
    return table


def results(futures: Iterable[Future[T]]) -> list[T]:
    return [future.result() for future in futures]


def combined(names: Iterable[str]) -> str:
    return "+".join(SHORT_NAMES[name] for name in names)


def mean_gib(page_counts: Iterable[int]) -> str:
    counts = list(page_counts)
    return f"{sum(counts) / len(counts) * PAGE_SIZE_BYTES / (1 << 30):.1f}"


def span(values: Sequence[float], digits: int) -> str:
    """From the least to the most."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}-{most}"


if __name__ == "__main__":
    main()
