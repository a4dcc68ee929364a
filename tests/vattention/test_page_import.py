"""Importing pages that each come with a descriptor of their own, as CUDA's do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import pytest

from vatt.errors import DriverError, VattError
from vatt.pages import ZONE_PAGES, Extent
from vatt.v1 import vatt_pb2
from vattention import page_import
from vattention.handle_socket import HandleConnection
from vattention.mapper import Mapper
from vattention.page_import import GrantedRun, import_runs
from vattention.vmm.driver import HandleKind, Placement

PAGE_BYTES = 2 << 20


class FakeMapper:
    """Wants a descriptor a page; a descriptor's file names its page."""

    def __init__(self, refused_page: int | None = None) -> None:
        self.imported: dict[int, int] = {}
        self._refused_page = refused_page

    def missing_fds(self, extent: Extent) -> list[int]:
        return list(extent.page_ids)

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        assert placement == Placement(HandleKind.POSIX_FD, PAGE_BYTES, 0)
        if self._refused_page in extent.page_ids:
            raise DriverError("refused", call="import_pages")
        for page_id, fd in zip(extent.page_ids, fds, strict=True):
            self.imported[page_id] = int(os.pread(fd, 20, 0))

    def release(self, extent: Extent) -> None:
        for page_id in extent.page_ids:
            del self.imported[page_id]


class FakeHandles:
    def __init__(self) -> None:
        self.pulls: list[int] = []

    def pull(self, runs: Sequence[vatt_pb2.PageRun]) -> list[int]:
        fds = []
        for run in runs:
            assert (run.page_count, run.generation) == (1, 9)
            fds.append(os.memfd_create("page"))
            os.pwrite(fds[-1], str(run.first_page_id).encode(), 0)
        self.pulls.append(len(fds))
        return fds


def run_of(first: int, page_count: int) -> GrantedRun:
    return GrantedRun(Extent(first, page_count), 9, Placement(HandleKind.POSIX_FD, PAGE_BYTES, 0))


def import_all(runs: Sequence[GrantedRun], mapper: FakeMapper, handles: FakeHandles) -> None:
    import_runs(runs, cast(Mapper, mapper), cast(HandleConnection, handles))


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_import, "room_for_fds", lambda: 10)


def test_messages_are_filled_and_every_page_gets_its_own_descriptor() -> None:
    mapper, handles = FakeMapper(), FakeHandles()
    before = len(os.listdir("/proc/self/fd"))
    import_all([run_of(0, 3), run_of(10, 4), run_of(20, 25), run_of(50, 1)], mapper, handles)
    assert mapper.imported == {page: page for page in [*range(3), *range(10, 14), *range(20, 45), 50]}
    assert handles.pulls == [7, 10, 10, 6]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refusal_in_the_middle_leaves_nothing_imported_and_nothing_open() -> None:
    mapper, handles = FakeMapper(refused_page=35), FakeHandles()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DriverError):
        import_all([run_of(0, 3), run_of(20, 25)], mapper, handles)
    assert mapper.imported == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_pieces_of_a_slab_run_lie_one_after_the_other() -> None:
    run = GrantedRun(Extent(8, 5), 9, Placement(HandleKind.SLAB_FD, 4096, 8 * 4096))
    assert [(piece.extent, piece.placement.offset_bytes) for piece in run.pieces(2)] == [
        (Extent(8, 2), 8 * 4096),
        (Extent(10, 2), 10 * 4096),
        (Extent(12, 1), 12 * 4096),
    ]


@pytest.mark.parametrize(
    "leased",
    [
        vatt_pb2.LeasedRun(),
        vatt_pb2.LeasedRun(run=vatt_pb2.PageRun(page_count=1)),
        vatt_pb2.LeasedRun(run=vatt_pb2.PageRun(page_count=0), kind=vatt_pb2.HANDLE_KIND_SLAB_FD),
        vatt_pb2.LeasedRun(run=vatt_pb2.PageRun(first_page_id=-1, page_count=1), kind=vatt_pb2.HANDLE_KIND_SLAB_FD),
        vatt_pb2.LeasedRun(
            run=vatt_pb2.PageRun(first_page_id=ZONE_PAGES - 1, page_count=2), kind=vatt_pb2.HANDLE_KIND_SLAB_FD
        ),
        vatt_pb2.LeasedRun(run=vatt_pb2.PageRun(page_count=1), kind=vatt_pb2.HANDLE_KIND_POSIX_FD, offset_bytes=4096),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(leased: vatt_pb2.LeasedRun) -> None:
    with pytest.raises(VattError, match="makes no sense"):
        GrantedRun.from_wire(leased, PAGE_BYTES)
