"""Granted pages made ready to map: their descriptors pulled, imported, closed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vatt.errors import VattError
from vatt.pages import Extent
from vatt.v1 import vatt_pb2
from vattention.handle_socket import HandleConnection, room_for_fds
from vattention.mapper import Mapper
from vattention.vmm.driver import HandleKind, Placement

_KINDS = {
    vatt_pb2.HANDLE_KIND_POSIX_FD: HandleKind.POSIX_FD,
    vatt_pb2.HANDLE_KIND_SLAB_FD: HandleKind.SLAB_FD,
}


@dataclass(frozen=True, slots=True)
class GrantedRun:
    """A run as vattd granted it, checked."""

    extent: Extent
    generation: int
    placement: Placement

    @classmethod
    def from_wire(cls, leased: vatt_pb2.LeasedRun, page_size_bytes: int) -> GrantedRun:
        """Raises VattError if it makes no sense."""
        run = leased.run
        try:
            kind = _KINDS[leased.kind]
            return cls(
                Extent(run.first_page_id, run.page_count),
                run.generation,
                Placement(kind, page_size_bytes, leased.offset_bytes),
            )
        except (KeyError, ValueError) as error:
            raise VattError(f"vattd granted a run that makes no sense: {leased}".strip()) from error

    def pieces(self, page_count: int) -> Iterator[GrantedRun]:
        """The run in pieces of at most `page_count` pages."""
        rest: Extent | None = self.extent
        while rest is not None:
            piece, after = rest.split(min(page_count, rest.page_count))
            offset_bytes = self.placement.offset_bytes
            if self.placement.kind is HandleKind.SLAB_FD:
                offset_bytes += (piece.first - self.extent.first) * self.placement.page_size_bytes
            placement = Placement(self.placement.kind, self.placement.page_size_bytes, offset_bytes)
            yield GrantedRun(piece, self.generation, placement)
            rest = after

    def page_run(self, page_id: int) -> vatt_pb2.PageRun:
        return vatt_pb2.PageRun(first_page_id=page_id, page_count=1, generation=self.generation)


def import_runs(runs: Sequence[GrantedRun], mapper: Mapper, handles: HandleConnection) -> None:
    """Import every run, or none. Not thread-safe: two imports of one slab would both find its descriptor missing."""
    with ExitStack() as undo:
        batch: list[GrantedRun] = []
        batch_pages = 0
        room = 0
        for run in runs:
            if run.placement.kind is HandleKind.SLAB_FD:
                _import_batch([run], mapper, handles, undo)
                continue
            # One descriptor a page: fill each message, but never more than this process may open.
            room = room or room_for_fds()
            for piece in run.pieces(room):
                if batch_pages + piece.extent.page_count > room:
                    _import_batch(batch, mapper, handles, undo)
                    batch, batch_pages = [], 0
                batch.append(piece)
                batch_pages += piece.extent.page_count
        _import_batch(batch, mapper, handles, undo)
        undo.pop_all()


def _import_batch(batch: Sequence[GrantedRun], mapper: Mapper, handles: HandleConnection, undo: ExitStack) -> None:
    missing = [mapper.missing_fds(run.extent) for run in batch]
    wanted = [run.page_run(page_id) for run, page_ids in zip(batch, missing, strict=True) for page_id in page_ids]
    with ExitStack() as received:
        fds: list[int] = []
        if wanted:
            room_for_fds()
            fds = handles.pull(wanted)
        for fd in fds:
            received.callback(os.close, fd)
        for run, page_ids in zip(batch, missing, strict=True):
            mine, fds = fds[: len(page_ids)], fds[len(page_ids) :]
            mapper.import_pages(run.extent, run.placement, mine)
            undo.callback(mapper.release, run.extent)
