"""Every call of a round made to fail in turn: no page, mapping, address or descriptor stays.

Run as it is for the host; test_on_cuda.py runs it in a simulated machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.faults.calls import Calls, CudaCalls, host_calls
from tests.faults.state import kept_by_the_kernel, open_fds
from tests.vattention.vmm.rig import KIB, MIB, ON_CUDA
from vatt.errors import VattError
from vattctl.bench.calls import measure_calls, one_round, rig
from vattctl.bench.stopwatch import PhaseTimes

DEVICE, PAGE = ("0", 2 * MIB) if ON_CUDA else ("host", 64 * KIB)
CODES = CudaCalls.codes if ON_CUDA else ("ENOMEM", "EMFILE", "ENOSPC", "EINTR", "EPERM")
# Of a round of three pages and the opening of both halves, that fail with some code.
LEAST_FAILURES = 40 if ON_CUDA else 3


@pytest.fixture
def calls() -> Iterator[Calls]:
    if ON_CUDA:
        yield CudaCalls()
        return
    with host_calls() as calls:
        yield calls


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("each_first", [False, True])
def test_whichever_call_fails_nothing_stays(calls: Calls, code: str, each_first: bool) -> None:
    with rig(DEVICE, PAGE) as both:
        one_round(both, 3, PhaseTimes(), each_first=each_first)
    before = kept_by_the_kernel(), open_fds()
    failures = 0
    for at in itertools.count(1):
        calls.fail(code, at)
        try:
            with rig(DEVICE, PAGE) as both:
                one_round(both, 3, PhaseTimes(), each_first=each_first)
        except VattError:
            failures += 1
        met = calls.clear()
        assert (kept_by_the_kernel(), open_fds()) == before, f"call {at}"
        if not met:
            break
    assert failures >= LEAST_FAILURES or (not ON_CUDA and code in ("EINTR", "ENOSPC", "EMFILE"))


def test_lines_are_of_each_call_and_each_phase_for_each_page_count() -> None:
    before = kept_by_the_kernel(), open_fds()
    lines = measure_calls(DEVICE, PAGE, [1, 5], 0.0, lambda done: None)
    assert (kept_by_the_kernel(), open_fds()) == before
    phases = {(line.phase, line.page_count) for line in lines if line.call is None}
    for phase in ("reserve", "create", "export", "import", "map", "unmap", "release", "destroy", "free"):
        assert {(phase, 1), (phase, 5)} <= phases
    assert {("map each", 5), ("unmap each", 5)} <= phases
    assert ("map each", 1) not in phases
    counts = {(line.phase, line.call): line.calls_a_round for line in lines if line.page_count == 5}
    if ON_CUDA:
        assert counts["create", "cuMemCreate"] == counts["map", "cuMemMap"] == counts["destroy", "cuMemRelease"] == 5
        assert counts["map", "cuMemSetAccess"] == counts["unmap", "cuMemUnmap"] == 1
        assert counts["map each", "cuMemSetAccess"] == counts["unmap each", "cuMemUnmap"] == 5
        assert counts["import", "cuMemImportFromShareableHandle"] == 5
    else:
        assert counts["create", "fallocate"] == counts["map", "mmap"] == counts["unmap", "mmap"] == 1
        assert counts["map each", "mmap"] == counts["unmap each", "mmap"] == 5
    for line in lines:
        for summary in (line.call_us, line.round_us):
            assert summary.least_us <= summary.median_us <= summary.most_us
        assert line.round_us.least_us >= line.call_us.least_us
