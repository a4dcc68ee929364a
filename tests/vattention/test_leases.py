"""Leases while the session re-attaches: what is claimed is what is held, and who gives back does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vatt.pages import Extent
from vatt.protocol import GENERATION_BITS
from vatt.v1 import vatt_pb2
from vattention import leases as leases_module
from vattention.connection import Claims
from vattention.engine_client import Grant
from vattention.leases import Leases
from vattention.page_source import LeasePurpose

WAIT_S = 30.0
GENERATION = 1 << GENERATION_BITS


class FakeConnection:
    """Re-attaches as the test says; `claimed` is how many pages were claimed each time."""

    attached = SimpleNamespace(incarnation=1, max_pages_per_lease=64)
    handles = None

    def __init__(self) -> None:
        self.claimed: list[int] = []
        self.on_resume: Callable[[], None] = lambda: None

    def resume(self, claims: Callable[[], AbstractContextManager[Claims]]) -> None:
        self.on_resume()
        with claims() as claimed:
            self.claimed.append(sum(run.page_count for run in claimed.runs))


class FakeClient:
    """Grants what is asked for, from page 0 on; `returned` counts pages."""

    def __init__(self) -> None:
        self.returned = 0

    def lease(self, page_count: int, *_: object) -> Grant:
        run = vatt_pb2.PageRun(first_page_id=0, page_count=page_count, generation=GENERATION)
        return Grant("any", (vatt_pb2.LeasedRun(run=run, kind=vatt_pb2.HANDLE_KIND_SLAB_FD),))

    def cancel(self, request_id: str) -> None: ...

    def return_pages(self, runs: list[vatt_pb2.PageRun]) -> None:
        self.returned += sum(run.page_count for run in runs)


class FakeMapper:
    page_size_bytes = 1 << 16

    def release(self, extent: Extent) -> None: ...

    def zone_fds(self) -> dict[int, int]:
        return {}


class Bench:
    def __init__(self) -> None:
        self.connection, self.client = FakeConnection(), FakeClient()
        self.leases = Leases(cast(Any, self.connection), cast(Any, self.client), cast(Any, FakeMapper()))

    def lease(self, page_count: int) -> list[Extent]:
        return self.leases.lease(page_count, 0, LeasePurpose.GROW, 0.0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(leases_module, "import_runs", lambda *_: None)
    return Bench()


def test_who_gives_pages_back_does_not_wait_for_a_vattd_that_keeps_the_session_waiting(bench: Bench) -> None:
    extents = bench.lease(8)
    waits, answers = threading.Event(), threading.Event()

    def be_slow() -> None:
        waits.set()
        assert answers.wait(WAIT_S)

    bench.connection.on_resume = be_slow
    resuming = threading.Thread(target=bench.leases.resume)
    resuming.start()
    assert waits.wait(WAIT_S)
    giving_back = threading.Thread(target=bench.leases.give_back, args=(extents,))
    giving_back.start()
    giving_back.join(WAIT_S / 3)
    returned = bench.client.returned
    answers.set()
    for thread in (giving_back, resuming):
        thread.join(WAIT_S)
    assert returned == 8
    assert bench.connection.claimed == [0]


class Interrupted:
    """A lock; right after its first use, before its user goes on, `then` happens."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._then: Callable[[], None] | None = then

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        then, self._then = self._then, None
        if then is not None:
            then()


def test_what_has_just_been_imported_is_claimed(bench: Bench) -> None:
    bench.leases._importing = cast(Any, Interrupted(bench.leases.resume))
    bench.lease(8)
    assert bench.connection.claimed == [8]
