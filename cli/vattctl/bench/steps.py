"""What a decode step waits for memory: nothing to map, pages mapped ahead in the background, and mapped in the step.

All slots grow by a token a step and cross into a new page in turn, one of TOKENS_A_PAGE each step. No model runs:
between two steps the engine's thread sleeps for as long as a fast one computes, which is when the background maps.
Only measuring needs torch.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vattctl.bench.summary import Summary
from vattctl.bench.turns import Tick, turns
from vattention.session import Session

if TYPE_CHECKING:
    from vattention.kvcache import KVCache
    from vattention.layout import KVCacheSpec

TOKENS_A_PAGE = 16
LAYERS = 32
PAGES_A_SLOT = 8
MOST_SLOTS = 64
STEP_S = 0.010
STEPS_A_RUN = (PAGES_A_SLOT - 1) * TOKENS_A_PAGE - 1
SETTLE_WITHIN_S = 5.0


class Way(enum.Enum):
    """How a step comes by its pages."""

    IDLE = "nothing to map"
    AHEAD = "mapped ahead"
    IN_STEP = "mapped in the step"


@dataclass(frozen=True, slots=True)
class StepLine:
    way: Way
    step_us: Summary
    mapped_pages_a_step: float


@dataclass(frozen=True, slots=True)
class Steps:
    """`slots` of them grow at one time; a step is `step_s` after the one before."""

    slots: int
    layers: int
    tokens_a_page: int
    step_s: float
    lines: Sequence[StepLine]


def measure_steps(session: Session, page_budget: int, seconds: float, tick: Tick) -> Steps:
    """The ways take turns, each run in a cache of its own, so that it finds nothing mapped."""
    from vattention.kvcache import KVCache

    slots = min(MOST_SLOTS, page_budget // PAGES_A_SLOT)
    spec = _spec(session.page_size_bytes, slots)
    runs = {way: _Runs(way, slots) for way in Way}
    for number in turns(seconds, len(Way), tick):
        way = list(Way)[number % len(Way)]
        with KVCache(session, spec, background=way is not Way.IN_STEP) as cache:
            runs[way].add(cache)
    return Steps(slots, LAYERS, TOKENS_A_PAGE, STEP_S, [each.line() for each in runs.values()])


class _Runs:
    """Steps of one way, over several runs."""

    def __init__(self, way: Way, slots: int) -> None:
        self._way = way
        self._slots = slots
        self._times_ns: list[int] = []
        self._mapped_pages = 0

    def add(self, cache: KVCache) -> None:
        lengths = [1 + slot % TOKENS_A_PAGE for slot in range(self._slots)]
        cache.step(lengths)
        if self._way is not Way.IN_STEP:  # which it would map ahead for
            cache.settle(SETTLE_WITHIN_S)
        before_pages = cache.stats().mapped_pages_total
        for _ in range(STEPS_A_RUN):
            lengths = [length + (self._way is not Way.IDLE) for length in lengths]
            began_ns = time.perf_counter_ns()
            cache.step(lengths)
            took_ns = time.perf_counter_ns() - began_ns
            self._times_ns.append(took_ns)
            time.sleep(max(0.0, STEP_S - took_ns / 1e9))
        self._mapped_pages += cache.stats().mapped_pages_total - before_pages

    def line(self) -> StepLine:
        return StepLine(self._way, Summary.of_ns(self._times_ns), self._mapped_pages / len(self._times_ns))


def _spec(page_size_bytes: int, slots: int) -> KVCacheSpec:
    """A token of all layers is a sixteenth of a page, whatever that is: 128 KiB of 2 MiB, as of Llama-3-8B."""
    import torch

    from vattention.layout import KVCacheSpec, Layout

    head_bytes = page_size_bytes // TOKENS_A_PAGE // LAYERS // 2
    return KVCacheSpec(
        num_layers=LAYERS,
        num_kv_heads=1,
        head_size=head_bytes // torch.float16.itemsize,
        dtype=torch.float16,
        max_batch_size=slots,
        max_context_length=PAGES_A_SLOT * TOKENS_A_PAGE,
        layout=Layout.FUSED,
    )
