"""An engine on a real vattd, with the calls of its driver, or of vattd's, failing in turn.

Run as it is for the host; test_on_cuda.py runs it in a simulated machine, where vattd's calls can be made to fail too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from tests.daemon import Vattd
from tests.faults.calls import Calls, CudaCalls, host_calls
from tests.faults.least import check_reached
from tests.faults.state import kept_by_the_kernel, mapping_state, open_fds
from tests.vattention.vmm.rig import ON_CUDA
from vatt.errors import DriverError, VattError
from vatt.pages import Extent
from vattention import kvcache
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec
from vattention.page_cache import PageCache
from vattention.session import Session

POOL_PAGES = 256
CODES = CudaCalls.codes if ON_CUDA else ("ENOMEM", "EMFILE", "EPERM")
PAGE_BYTES = (2 << 20) if ON_CUDA else (64 << 10)
# A page holds a quarter of a slot's tokens, in whatever layout the backend has.
SPEC = KVCacheSpec(1, 1, PAGE_BYTES // 1024, torch.float32, max_batch_size=3, max_context_length=1024)
CHUNK = SPEC.max_context_length // 4


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    pool = ("--pool-max", str(POOL_PAGES * PAGE_BYTES), "--headroom", "0")
    with Vattd(*pool, device="0" if ON_CUDA else "host") as vattd:
        yield vattd


@pytest.fixture
def session(vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """One whose page cache fetches and gives back nothing by itself: its calls would be counted among the test's."""
    monkeypatch.setattr(PageCache, "_work_waits", lambda self, usage: False)
    if ON_CUDA:  # torch here has no CUDA; the CPU can read the simulated GPU's memory
        monkeypatch.setattr(kvcache, "torch_device", lambda device: torch.device("cpu"))
        monkeypatch.setattr(kvcache, "default_fence", lambda device: lambda: None)
    with Session.connect("faults", socket_dir=vattd.socket_dir) as session:
        yield session


@pytest.fixture
def calls() -> Iterator[Calls]:
    if ON_CUDA:
        yield CudaCalls()
        return
    with host_calls() as calls:
        yield calls


Act = Callable[[], object]
Operation = Callable[[Session], AbstractContextManager[Act]]


@contextmanager
def leasing(session: Session) -> Iterator[Act]:
    yield lambda: session.give_back(session.lease(3))


@contextmanager
def leasing_in_parts(session: Session) -> Iterator[Act]:
    most = session._connection.attached.max_pages_per_lease
    session._connection.attached.max_pages_per_lease = 2
    try:
        yield lambda: session.give_back(session.lease(5))
    finally:
        session._connection.attached.max_pages_per_lease = most


@contextmanager
def caching(session: Session) -> Iterator[KVCache]:
    with KVCache(session, SPEC, background=False) as cache:
        number = cache.acquire_slot()
        cache.grow(number, CHUNK)
        yield cache


@contextmanager
def making_a_cache(session: Session) -> Iterator[Act]:
    made: list[KVCache] = []
    yield lambda: made.append(KVCache(session, SPEC, background=False))
    for cache in made:
        cache.close()


@contextmanager
def growing(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        yield lambda: cache.grow(0, 3 * CHUNK)


@contextmanager
def stepping(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        yield lambda: cache.step([2 * CHUNK, CHUNK, 0])


@contextmanager
def acquiring_and_growing_many(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        number = cache.acquire_slot(CHUNK)
        yield lambda: cache.grow_many({0: 2 * CHUNK, number: CHUNK})


@contextmanager
def shrinking(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        cache.grow(0, 4 * CHUNK)
        yield lambda: cache.shrink(0, CHUNK)


@contextmanager
def letting_a_finished_slot_go(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        cache.grow(0, 4 * CHUNK)
        cache.free_slot(0)
        yield cache.release_idle


@contextmanager
def forking(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        cache.grow(0, 2 * CHUNK + 1)
        yield lambda: cache.fork_slot(0)


@contextmanager
def admitting(session: Session) -> Iterator[Act]:
    with caching(session) as cache:
        yield lambda: cache.admit_slot(2 * CHUNK)


OPERATIONS: list[Operation] = [
    leasing,
    leasing_in_parts,
    making_a_cache,
    growing,
    stepping,
    acquiring_and_growing_many,
    shrinking,
    letting_a_finished_slot_go,
    forking,
    admitting,
]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)


def held(session: Session, vattd: Vattd) -> dict[str, Any]:
    """What both sides say that the session holds. Pages at hand that are mapped nowhere may be more than before."""
    (row,) = (row for row in vattd.status().sessions if row.session_id == session.session_id)
    mapper: Any = session.mapper
    leased = set(session._leases._generation_of)
    imported, mapped, counts, *_ = mapping_state(mapper._driver)
    assert {page for first, end in zip(*imported, strict=True) for page in range(first, end)} == leased
    assert row.leased_bytes // session.page_size_bytes == len(leased)
    assert not any(extent for extent in session._leases._left)
    in_rows = len(leased) - session.pages.page_count
    assert in_rows == session.mapper.mapped_pages
    return {
        "mapped": mapped,
        "counts": counts,
        "in rows": in_rows,
        "fds": memory_fds(),
        "kernel": kept_by_the_kernel()[1:],
    }


def memory_fds() -> dict[str, int]:
    """Slabs' and pages' alone: gRPC opens and closes sockets of its own."""
    return {name: count for name, count in open_fds().items() if "slab" in name or "allocation" in name}


def fail_in_turn(whose: str, session: Session, vattd: Vattd, calls: Calls, operation: Operation, code: str) -> None:
    """`whose` calls they are that fail."""
    for at in itertools.count(1):
        with operation(session) as act:
            before = held(session, vattd)
            calls.fail(code, at)
            failure = None
            try:
                act()
            except VattError as error:
                failure = error
            met = calls.clear()
            if operation in (leasing, leasing_in_parts):  # what give_back could not release is the caller's still
                session.give_back(leased_extents(session))
            after = held(session, vattd)
            if failure is not None:
                assert met, f"nothing was made to fail: {failure}"
                assert after["mapped"] == before["mapped"], f"call {at} failed: {failure}"
                assert (after["counts"], after["in rows"]) == (before["counts"], before["in rows"])
                if ON_CUDA:  # on the host a slab's descriptor stays while a page is at hand
                    assert (after["fds"], after["kernel"]) == (before["fds"], before["kernel"])
                until_it_works(act)
        session.give_back(session.pages.give_up(POOL_PAGES))
        assert session.leased_pages == 0
        held(session, vattd)
        if not met:
            check_reached(f"{whose}: {operation.__name__}", code, at - 1)
            return


def until_it_works(act: Act) -> None:
    """After a refusal vattd leaves the device alone for a moment, and says so."""
    give_up_s = time.monotonic() + 20
    while True:
        try:
            act()
        except DriverError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(0.02)
        else:
            return


def leased_extents(session: Session) -> list[Extent]:
    return [Extent(page_id, 1) for page_id in sorted(session._leases._generation_of)]


@each_operation
@pytest.mark.parametrize("code", CODES)
def test_a_call_of_the_engine_that_fails_leaves_both_sides_as_they_were(
    session: Session, vattd: Vattd, calls: Calls, operation: Operation, code: str
) -> None:
    fail_in_turn("engine", session, vattd, calls, operation, code)


@pytest.mark.skipif(not ON_CUDA, reason="another process's system calls cannot be made to fail")
@pytest.mark.parametrize("operation", [leasing, growing], ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("code", CODES)
def test_a_call_of_vattd_that_fails_leaves_both_sides_as_they_were(
    session: Session, vattd: Vattd, operation: Operation, code: str
) -> None:
    fail_in_turn("vattd", session, vattd, CudaCalls(vattd.pid), operation, code)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.usefixtures("session")  # for what it patches
def test_close_ends_whatever_call_fails_and_vattd_has_the_pages_back_only_if_all_went_well(
    vattd: Vattd, calls: Calls, code: str
) -> None:
    for at in itertools.count(1):
        session = Session.connect("closing", socket_dir=vattd.socket_dir)
        session_id = session.session_id
        cache = KVCache(session, SPEC, background=False)
        cache.grow(cache.acquire_slot(), 2 * CHUNK)
        session.pages.put(session.lease(3))
        calls.fail(code, at)
        failure = None
        try:
            session.close()
        except VattError as error:
            failure = error
        met = calls.clear()
        session.close()  # once more changes nothing
        leased = {row.session_id: row.leased_bytes for row in vattd.status().sessions}
        assert session_id not in leased or failure is not None
        # What it left can still be let go of, part by part.
        cache.close()
        session.pages.close()
        session.mapper.close()
        if not met:
            assert failure is None
            check_reached("engine: closing", code, at - 1)
            return
