"""All parts of a bench, one after the other, so that no more memory is taken than the largest of them needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TypeVar

from vatt.errors import DriverError, VattError
from vatt.v1 import vatt_pb2 as pb
from vattctl.bench import environment, gpu
from vattctl.bench.calls import measure_calls
from vattctl.bench.environment import Environment
from vattctl.bench.leases import Leases, measure_leases
from vattctl.bench.lender import Lender, lender
from vattctl.bench.plan import Part, Plan
from vattctl.bench.report import LeftOut, Overheads, PoolFacts, Report
from vattctl.bench.steps import PAGES_A_SLOT, Steps, measure_steps
from vattctl.bench.stopwatch import PhaseTimes
from vattctl.bench.summary import Summary
from vattctl.bench.turns import Tick
from vattention.vmm import open_physical
from vattention.vmm.cuda_call import call
from vattention.vmm.libc import MADV_DONTFORK, madvise
from vattention.vmm.os_call import os_call

LEAST_CALL_TIMES = 2000

_Result = TypeVar("_Result")
# Called with a part and how much of it is done; it may raise.
Progress = Callable[[Part, float], None]
# Told of a part that failed, in all words.
OnFailure = Callable[[Part, VattError], None]


def run(plan: Plan, progress: Progress, on_failure: OnFailure) -> Report:
    """A part that fails is left out of the report, which says so; nothing of it stays on the device."""
    bench = _Bench(plan, progress, on_failure)
    with ExitStack() as stack:
        machine = _look_around(plan, stack)
        overheads = _overheads(is_cuda=plan.backend == "cuda")
        calls = bench.part(
            Part.CALLS,
            lambda tick: measure_calls(
                plan.device, plan.page_size_bytes, plan.page_counts, plan.seconds[Part.CALLS], tick
            ),
        )
        bench.with_lender()
    return Report(machine, plan, overheads, calls or [], bench.leases, bench.steps, bench.pool, bench.left_out)


class _Bench:
    """What has come of the parts so far."""

    def __init__(self, plan: Plan, progress: Progress, on_failure: OnFailure) -> None:
        self._plan = plan
        self._progress = progress
        self._on_failure = on_failure
        self.leases: Leases | None = None
        self.steps: Steps | None = None
        self.pool: PoolFacts | None = None
        self.left_out: dict[Part, LeftOut] = {}

    def part(self, part: Part, measure: Callable[[Tick], _Result]) -> _Result | None:
        if part not in self._plan.parts:
            return None
        try:
            return measure(lambda done: self._progress(part, done))
        except VattError as error:
            self._fails(part, error)
            return None

    def with_lender(self) -> None:
        """The parts that lease."""
        reason = _why_no_steps(self._plan) if Part.STEPS in self._plan.parts else None
        if reason is not None:
            self.left_out[Part.STEPS] = LeftOut(reason, is_failure=False)
        wanted = [part for part in (Part.LEASES, Part.STEPS) if part in self._plan.parts and part not in self.left_out]
        if not wanted:
            return
        try:
            with lender(self._plan) as lent:
                self._lease(lent)
                if Part.STEPS in wanted:
                    self._step(lent)
        except VattError as error:
            for part in wanted:
                self._fails(part, error)

    def _lease(self, lent: Lender) -> None:
        counts = [count for count in self._plan.page_counts if count <= lent.session.pool_pages]
        seconds, is_polite = self._plan.seconds[Part.LEASES], not lent.is_private

        def measure(tick: Tick) -> Leases:
            lent.session.give_back(lent.session.lease(max(counts)))  # which makes the pages
            before = lent.status()
            leases = measure_leases(lent.session, counts, seconds, tick, is_polite=is_polite)
            self.pool = _pool_facts(lent, before, lent.status())
            return leases

        self.leases = self.part(Part.LEASES, measure)

    def _step(self, lent: Lender) -> None:
        budget = min(self._plan.page_budget, lent.session.pool_pages)
        self.steps = self.part(
            Part.STEPS, lambda tick: measure_steps(lent.session, budget, self._plan.seconds[Part.STEPS], tick)
        )

    def _fails(self, part: Part, error: VattError) -> None:
        cause = _first_of(error)
        self._on_failure(part, cause)
        self.left_out[part] = LeftOut(_short_words(cause), is_failure=True)


def _look_around(plan: Plan, stack: ExitStack) -> Environment:
    """The machine before it is busy with us. On a GPU the bench has a context from here on, until the stack ends."""
    physical = open_physical(plan.device, plan.page_size_bytes)
    stack.callback(physical.close)
    device, memory = physical.device, physical.memory()
    if device.backend != "cuda":
        return environment.describe(device, memory, None)
    context_bytes = stack.enter_context(gpu.engine_context(device))
    return environment.describe(device, memory, gpu.describe(device, context_bytes))


def _why_no_steps(plan: Plan) -> str | None:
    if plan.page_budget < PAGES_A_SLOT:
        return f"they need {PAGES_A_SLOT} pages at least: give more --memory"
    if find_spec("torch") is None:
        return "torch is not installed"
    if plan.backend == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "the torch that is installed has no CUDA here"
    return None


def _overheads(*, is_cuda: bool) -> Overheads:
    name = "cuDriverGetVersion" if is_cuda else "madvise of nothing"
    stopwatch, least = PhaseTimes(), PhaseTimes()
    for _ in range(LEAST_CALL_TIMES):
        stopwatch.run("nothing", _nothing)
        if is_cuda:
            least.run("least", call, "cuDriverGetVersion")
        else:
            least.run("least", os_call, "madvise", madvise, 0, 0, MADV_DONTFORK)
    return Overheads(_only_summary(stopwatch), name, _only_summary(least))


def _only_summary(times: PhaseTimes) -> Summary:
    times.end_round(1)
    [line] = times.lines()
    return line.call_us


def _nothing() -> None:
    pass


def _pool_facts(lent: Lender, before: pb.GetStatusResponse | None, after: pb.GetStatusResponse | None) -> PoolFacts:
    if before is None or after is None:
        return PoolFacts(lent.is_private, None, lent.session.page_size_bytes, None, None, None, None, None)
    return PoolFacts(
        is_private=lent.is_private,
        vattd_version=after.daemon.version,
        page_size_bytes=after.pool.page_size_bytes,
        min_bytes=after.pool.min_bytes,
        max_bytes=after.pool.max_bytes,
        scrub=after.pool.scrub,
        other_sessions=len(after.sessions) - 1,
        created_pages=after.pool.created_pages_total - before.pool.created_pages_total,
    )


def _first_of(error: VattError) -> VattError:
    """What went wrong first: after a sticky error of the device, what undoes things fails too."""
    while isinstance(error.__context__, VattError):
        error = error.__context__
    return error


def _short_words(error: VattError) -> str:
    """What may be sent to anybody: an error's message may name paths, processes and devices."""
    if isinstance(error, DriverError) and error.call:
        return f"{error.reason}: {error.call} {error.code}".strip()
    return error.reason
