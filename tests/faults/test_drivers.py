"""Every call of both drivers made to fail in turn: what is all or nothing left nothing, and the rest tells the truth.

Run as it is for the host; test_on_cuda.py runs it in a simulated machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.faults.calls import Calls, CudaCalls, host_calls
from tests.faults.least import check_reached
from tests.faults.operations import (
    ALL_OR_NOTHING,
    Operation,
    destroying,
    name_of,
    opening_the_mapping_half,
    opening_the_physical_half,
    releasing,
    scrubbing,
)
from tests.faults.state import kept_by_the_kernel, open_fds, state_of
from tests.vattention.vmm.rig import KIB, ON_CUDA, Rig
from vatt.errors import VattError
from vatt.pages import Extent
from vattention.vmm.driver import NotReleased

PAGE = None if ON_CUDA else 64 * KIB
CODES = CudaCalls.codes if ON_CUDA else ("ENOMEM", "EMFILE", "ENOSPC", "EINTR", "EPERM")
# The driver may refuse to unmap what was being scrubbed: that is tried again before any page is touched.
TIDIED_LATER = [scrubbing]
# A driver that does not know what MPS is says so, and then there is none.
MAY_BE_OLD = [opening_the_physical_half, opening_the_mapping_half]

each_code = pytest.mark.parametrize("code", CODES)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig.open(PAGE)
    yield rig
    rig.close()


@pytest.fixture
def calls() -> Iterator[Calls]:
    if ON_CUDA:
        yield CudaCalls()
        return
    with host_calls() as calls:
        yield calls


@each_code
@pytest.mark.parametrize("operation", ALL_OR_NOTHING, ids=name_of)
def test_an_operation_whose_nth_call_fails_has_changed_nothing_and_can_be_repeated(
    rig: Rig, calls: Calls, operation: Operation, code: str
) -> None:
    idle = None
    for at in itertools.count(1):
        with operation(rig) as act:
            before = state_of(rig)
            failure = None
            calls.fail(code, at)
            try:
                act()
            except VattError as error:
                failure = error
            met = calls.clear()
            if failure is not None:
                assert met, f"nothing was made to fail: {failure}"
                assert state_of(rig) == before or operation in TIDIED_LATER, f"call {at} failed: {failure}"
                act()
            else:
                is_old = operation in MAY_BE_OLD and code == "INVALID_VALUE"
                assert not met or code == "EINTR" or is_old, f"nobody heard that call {at} failed"
        idle = idle or state_of(rig)
        assert state_of(rig) == idle, f"after call {at}"
        if not met:
            check_reached(name_of(operation), code, at - 1)
            return


@each_code
def test_pages_that_are_not_destroyed_are_named_and_the_others_have_gone(rig: Rig, calls: Calls, code: str) -> None:
    for at in itertools.count(1):
        with destroying(rig) as act:
            calls.fail(code, at)
            kept = _kept_of(act)
            met = calls.clear()
            assert rig.physical.memory().pages_bytes == sum(extent.page_count for extent in kept) * rig.page
            for extent in kept:
                rig.physical.destroy(extent)
        assert rig.physical.memory().pages_bytes == 0
        if not met:
            check_reached("destroying", code, at - 1)
            return


@each_code
def test_pages_that_are_not_released_are_named_and_the_others_have_gone(rig: Rig, calls: Calls, code: str) -> None:
    for at in itertools.count(1):
        with releasing(rig) as act:
            calls.fail(code, at)
            kept = _kept_of(act)
            met = calls.clear()
            for extent in kept:
                rig.mapping.release(extent)
            rig.share(Extent(0, 3))  # none is imported any more
            rig.mapping.release(Extent(0, 3))
        if not met:
            check_reached("releasing", code, at - 1)
            return


def _kept_of(act: object) -> list[Extent]:
    assert callable(act)
    try:
        act()
    except NotReleased as refused:
        return refused.extents
    except VattError:  # the host's one call for all of them
        return [Extent(0, 3)]
    return []


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@each_code
def test_closing_goes_on_after_a_call_that_failed(calls: Calls, code: str, for_ever: bool) -> None:
    for at in itertools.count(1):
        start, others_slabs = kept_by_the_kernel(), _slabs(open_fds())
        rig = Rig.open(PAGE)
        for extent in (Extent(0, 2), Extent(4, 2)):
            rig.map_new([extent])
        rig.mapping.reserve(8 * rig.page)
        if ON_CUDA:
            rig.physical.scrub(Extent(0, 1))
        fds = open_fds()
        calls.fail(code, at, for_ever=for_ever)
        try:
            rig.mapping.close()
        except VattError as error:
            failure: VattError | None = error
        else:
            failure = None
        try:
            rig.physical.close()
        except VattError as error:
            failure = failure or error
        met = calls.clear()
        assert met == (failure is not None) or code == "EINTR"
        left = sum(kept_by_the_kernel()) - sum(start)
        # What one call was to take away: two mappings with their reservation, or one of something; a reservation.
        most = 3 if ON_CUDA else 8 * rig.page
        assert left <= (most if failure else 0) or for_ever
        if not ON_CUDA:
            assert _slabs(fds) > _slabs(open_fds()) == others_slabs, "closing a descriptor cannot fail"
        rig.close()  # once more changes nothing
        assert sum(kept_by_the_kernel()) - sum(start) == left
        if not met:
            check_reached("closing", code, at - 1)
            return


def _slabs(fds: dict[str, int]) -> int:
    return sum(count for name, count in fds.items() if "vattd-slab" in name)
