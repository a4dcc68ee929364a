"""One trace through vattention and through what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vatt.errors import InvalidRequest
from vatt.sizes import format_size
from vattctl.replay.batching import Batch, Step
from vattctl.replay.engine import PagedByVattention, vattention_memory
from vattctl.replay.figures import MapFigures, Meter, Outcome, SchemeFigures, Timeline
from vattctl.replay.models import Double, Model
from vattctl.replay.schemes import BlockMemory, baselines
from vattctl.replay.trace import Trace
from vattention import Layout

# Called with the number of requests that are done.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a trace is replayed. Sizes are the model's, not its double's."""

    model: Model
    layout: Layout
    page_size_bytes: int
    budget_bytes: int
    speed: float  # divides arrival times; 0: all requests wait from the start
    step_s: float
    slot_count: int
    context_length: int

    @property
    def budget_pages(self) -> int:
        return self.budget_bytes // self.page_size_bytes

    @property
    def pace(self) -> str:
        """How requests come, in words."""
        if self.speed == 0:
            return "all waiting from the start"
        return "arriving as recorded" if self.speed == 1 else f"arriving {self.speed:g} times as fast as recorded"


def replay(trace: Trace, settings: Settings, progress: Progress = lambda done: None) -> Outcome:
    """Raises InvalidRequest if the largest request does not fit in the budget by itself."""
    trace = trace.cut_to(settings.context_length)
    longest = max(request.length_tokens for request in trace.requests)
    token_bytes = settings.model.token_bytes
    if settings.budget_pages < 1 or longest * token_bytes > settings.budget_bytes:
        raise _budget_too_small(settings, longest)
    ours, maps, timeline = _through_vattention(trace, settings, longest, progress)
    schemes, too_small = [ours], []
    for scheme in baselines(settings.context_length):
        memory = BlockMemory(scheme, token_bytes, settings.budget_bytes, settings.slot_count)
        if memory.can_hold(longest):
            schemes.append(_through_blocks(trace, settings, memory))
        else:
            too_small.append(scheme.name)
    return Outcome(schemes, too_small, maps, timeline)


def _through_blocks(trace: Trace, settings: Settings, memory: BlockMemory) -> SchemeFigures:
    batch = Batch(trace.requests, memory, settings.step_s, settings.speed)
    meter = Meter()

    def observe(step: Step) -> None:
        token_bytes = int(step.lengths.sum()) * settings.model.token_bytes
        meter.note(batch, step, token_bytes, memory.blocks(step.lengths) * memory.block_bytes)

    batch.run(observe)
    return meter.figures(memory.scheme.name, batch, settings.step_s)


def _through_vattention(
    trace: Trace, settings: Settings, longest: int, progress: Progress
) -> tuple[SchemeFigures, MapFigures, Timeline]:
    double = Double.of(settings.model, settings.page_size_bytes)
    with vattention_memory(
        double, settings.layout, settings.budget_pages, settings.slot_count, settings.context_length
    ) as memory:
        if not memory.can_hold(longest):
            raise _budget_too_small(settings, longest)
        batch = Batch(trace.requests, memory, settings.step_s, settings.speed, memory.clock)
        recorder = _Recorder(settings, batch, memory, progress)
        batch.run(recorder.observe)
        return recorder.outcome()


class _Recorder:
    """Looks at the cache after every step."""

    def __init__(self, settings: Settings, batch: Batch, memory: PagedByVattention, progress: Progress) -> None:
        self._settings = settings
        self._batch = batch
        self._memory = memory
        self._progress = progress
        self._meter = Meter()
        self._schemes = baselines(settings.context_length)
        self._rows: list[tuple[float, ...]] = []
        self._most_over_need = 0
        self._most_runs = 0

    def observe(self, step: Step) -> None:
        held, page_bytes = self._memory.held(), self._settings.page_size_bytes
        token_size = self._settings.model.token_bytes
        token_bytes = int(step.lengths.sum()) * token_size
        running_bytes = held.running_pages * page_bytes
        others = [s.blocks(step.lengths) * s.block_tokens * token_size for s in self._schemes]
        self._meter.note(self._batch, step, token_bytes, running_bytes)
        self._rows.append((self._batch.clock(), token_bytes, running_bytes, held.kept_pages * page_bytes, *others))
        over_need = held.running_pages + held.kept_pages - held.needed_pages
        self._most_over_need = max(self._most_over_need, over_need)
        self._most_runs = max(self._most_runs, held.kernel_runs)
        self._progress(self._batch.finished)

    def outcome(self) -> tuple[SchemeFigures, MapFigures, Timeline]:
        memory, name = self._memory, f"vattention {self._settings.layout.value}"
        maps = MapFigures(
            needed_pages=memory.needed_total,
            mapped_pages=memory.mapped_total,
            unmapped_pages=memory.unmapped_total,
            unmapped_on_request_path_pages=memory.unmapped_by_requests,
            most_held_over_need_pages=self._most_over_need,
            most_kernel_mappings=self._most_runs,
            pool_pages=self._settings.budget_pages,
        )
        time_s, tokens, running, kept, *others = np.array(self._rows, dtype=np.float64).T
        by_name = {scheme.name: series for scheme, series in zip(self._schemes, others, strict=True)}
        timeline = Timeline(time_s, tokens, running, kept, by_name)
        return self._meter.figures(name, self._batch, self._settings.step_s), maps, timeline


def _budget_too_small(settings: Settings, longest: int) -> InvalidRequest:
    return InvalidRequest(
        f"a budget of {format_size(settings.budget_bytes)} cannot hold the largest request, of {longest:,} tokens: "
        "give a larger --budget, or a smaller --context to cut it"
    )
