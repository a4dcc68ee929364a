"""Who asks for what, and when: the traces of the study as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.tenancy.account import PAGE_SIZE_BYTES
from vattctl.replay.models import MODELS
from vattctl.replay.trace import CARRIED, read_trace

STEP_S = 0.025
PAGE_TOKENS = PAGE_SIZE_BYTES // MODELS["llama-3-8b"].token_bytes  # 16, in the fused layout
HOUR_S = 3600.0
TRACES = Path(__file__).parent.parent / "traces"
NAMES = ("azure_conv", "azure_code", "mooncake_conv", "arxiv_long")
# Those with long contexts, whose requests are few and large.
LONG_CONTEXT = frozenset({"mooncake_conv", "arxiv_long"})

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests of one tenant, in the order of their arrival."""

    name: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: Counts
    output_tokens: Counts

    def __len__(self) -> int:
        return len(self.arrival_s)

    def first(self, seconds: float) -> Workload:
        count = int(np.searchsorted(self.arrival_s, seconds))
        return Workload(self.name, self.arrival_s[:count], self.prompt_tokens[:count], self.output_tokens[:count])

    def turned(self, seconds: float) -> Workload:
        """The same hour, begun at another moment of it: what came before follows at the end."""
        arrival_s = (self.arrival_s - seconds) % HOUR_S
        order = np.argsort(arrival_s, kind="stable")
        return Workload(self.name, arrival_s[order], self.prompt_tokens[order], self.output_tokens[order])

    @property
    def begin_steps(self) -> Counts:
        return np.ceil(self.arrival_s / STEP_S).astype(np.int64)

    @property
    def largest_pages(self) -> int:
        """What the largest request needs at its end."""
        return int(pages_of(self.prompt_tokens + self.output_tokens - 1).max())

    def demand_pages(self, step_count: int = 0) -> Counts:
        """What is used in each step where nobody ever waits; at least so many steps."""
        begin, output = self.begin_steps, self.output_tokens
        used = np.zeros(max(step_count, int((begin + output).max())), dtype=np.int64)
        requests = zip(begin.tolist(), self.prompt_tokens.tolist(), output.tolist(), strict=True)
        for first, prompt_tokens, tokens in requests:
            used[first : first + tokens] += pages_of(prompt_tokens + np.arange(tokens))
        return used

    @property
    def peak_pages(self) -> int:
        return int(self.demand_pages().max())


def pages_of(tokens: Counts) -> Counts:
    return -(-tokens // PAGE_TOKENS)


def peak_pages(workloads: Sequence[Workload]) -> int:
    """The most that they use together where nobody ever waits."""
    steps = max(int((w.begin_steps + w.output_tokens).max()) for w in workloads)
    return int(np.sum([workload.demand_pages(steps) for workload in workloads], axis=0).max())


def load(name: str, seed: int) -> Workload:
    """An hour of a tenant. Seed 0 is as recorded; others begin at another moment, and draw other arrivals."""
    rng = np.random.default_rng([seed, NAMES.index(name)])
    if name == "arxiv_long":
        lengths = _read("arxiv_long_lengths")
        arrivals = np.sort(rng.uniform(0, HOUR_S, len(lengths.arrival_s)))  # Poisson, given how many come
        return Workload(name, arrivals, lengths.prompt_tokens, lengths.output_tokens)
    workload = _read(name)
    return workload if seed == 0 else workload.turned(rng.uniform(0, HOUR_S))


@cache
def _read(name: str) -> Workload:
    if name in CARRIED:
        rows = [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_trace(name).requests]
        table = np.array(rows)
    else:
        path = TRACES / f"{name}.csv"
        columns = path.read_text().partition("\n")[0].split(",")
        table = np.loadtxt(path, delimiter=",", skiprows=1)
        if "arrival_s" not in columns:
            table = np.column_stack([np.zeros(len(table)), table])
    return Workload(name, table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64))
