"""The pages that a session holds: leased from vattd, imported, and returned."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

from vatt.errors import DriverError, InvalidRequest, LimitExceeded, PoolExhausted, SessionFenced, VattError
from vatt.pages import Extent, FreeExtents, extents_of, page_count_of
from vatt.protocol import GENERATION_BITS
from vatt.v1 import vatt_pb2
from vattention.connection import Claims, Connection
from vattention.engine_client import EngineClient, Grant
from vattention.integers import as_integer
from vattention.mapper import Mapper
from vattention.page_import import GrantedRun, import_runs
from vattention.page_source import LeasePurpose, check_wait
from vattention.returns import StillHeld, still_held
from vattention.vmm.driver import NotReleased


class StaleGrant(SessionFenced):
    """The session is back, at another vattd than the one that granted these pages: ask that one."""


class Leases:
    """Leases and returns pages, which the mapper then has or has no more. Thread-safe.

    Invariants: `_generation_of` holds exactly the pages that are leased and imported, by page id. `_left` are those of
    them that are in nobody's hands, since the driver did not let go of them when a lease was undone: whoever leases
    next gets them first.
    """

    def __init__(self, connection: Connection, client: EngineClient, mapper: Mapper) -> None:
        self._connection = connection
        self._client = client
        self._mapper = mapper
        self._lock = threading.Lock()
        # Two imports at a time could both find a slab's descriptor missing.
        self._importing = threading.Lock()
        # While pages are let go of they are neither held nor returned yet: nothing is claimed then. Not held for longer
        # than a claim takes, which a vattd is there for: who gives back must not wait for one that is stopped.
        self._releasing = threading.Lock()
        self._generation_of: dict[int, int] = {}
        self._left = FreeExtents()

    @property
    def page_count(self) -> int:
        return len(self._generation_of)

    def lease(self, page_count: int, min_page_count: int, purpose: LeasePurpose, wait_s: float) -> list[Extent]:
        """As Session.lease."""
        page_count = as_integer(page_count, "page_count")
        min_page_count = as_integer(min_page_count, "min_page_count")
        if page_count < 1 or not 0 <= min_page_count <= page_count:
            raise InvalidRequest(f"{page_count} pages, at least {min_page_count}: lease one or more, the least no more")
        check_wait(wait_s)
        if wait_s and purpose is not LeasePurpose.ADMIT:
            raise InvalidRequest("only a lease to ADMIT may wait")
        least = min_page_count or page_count
        deadline_s = time.monotonic() + wait_s  # for all parts together
        with ExitStack() as undo:
            held = self._take_left(page_count)
            undo.callback(self._put_away, held)
            held_count = page_count_of(held)
            # One request may ask for so many pages at most; the rest is asked for in further ones.
            while held_count < page_count:
                ask = min(page_count - held_count, self._connection.attached.max_pages_per_lease)
                left_s = max(0.0, deadline_s - time.monotonic()) if wait_s else 0.0
                try:
                    grant = self._client.lease(ask, max(1, min(ask, least - held_count)), purpose, left_s)
                except (PoolExhausted, LimitExceeded) as error:
                    if held and held_count >= least:
                        break
                    if isinstance(error, LimitExceeded):  # it names a part of what was asked for
                        raise LimitExceeded(least, error.limit_pages) from error
                    raise
                extents = self._take_in(grant, ask)
                undo.callback(self._give_back_or_leave, extents)
                held = [*held, *extents]
                granted = page_count_of(extents)
                held_count += granted
                if granted < ask:
                    break
            undo.pop_all()
        return held

    def give_back(self, extents: Sequence[Extent]) -> None:
        """As Session.give_back."""
        released: list[vatt_pb2.PageRun] = []
        generation_of: dict[int, int] = {}
        refusal: DriverError | None = None
        try:
            with self._releasing:
                generation_of = self._take_out(extents)
                try:
                    for extent in extents_of(generation_of):
                        gone = [extent]
                        try:
                            self._mapper.release(extent)
                        except DriverError as error:  # the others may go all the same
                            refusal = refusal or error
                            gone = _gone(extent, error)
                        for part in gone:
                            released += _page_runs(part, generation_of)
                            for page_id in part.page_ids:
                                del generation_of[page_id]
                finally:
                    with self._lock:
                        self._generation_of.update(generation_of)  # what was not released stays held
        finally:
            self._client.return_pages(released)
        if refusal is not None:
            raise still_held(extents_of(generation_of), refusal) from refusal

    def _give_back_or_leave(self, extents: Sequence[Extent]) -> None:
        """Undo a part of a lease, which fails for a reason of its own."""
        try:
            self.give_back(extents)
        except StillHeld as refused:
            self._put_away(refused.extents)

    def _take_left(self, page_count: int) -> list[Extent]:
        with self._lock:
            taken = self._left.take(page_count)
            # One may have gone back since: whoever had it before it was left may say once more that it goes.
            return extents_of(page for extent in taken for page in extent.page_ids if page in self._generation_of)

    def _put_away(self, extents: Sequence[Extent]) -> None:
        """Keep pages for whoever leases next."""
        with self._lock:
            for extent in extents:
                self._left.give_back(extent)

    def resume(self) -> None:
        """Have the connection re-attach while no page is being imported, and claim what is held, if it is asked to."""
        with self._importing:
            self._connection.resume(self._claims)

    @contextmanager
    def _claims(self) -> Iterator[Claims]:
        """What is held, until the claim is answered: nothing of it is let go of meanwhile."""
        with self._releasing:
            with self._lock:
                generation_of = dict(self._generation_of)
            runs = [run for extent in extents_of(generation_of) for run in _page_runs(extent, generation_of)]
            slabs = self._mapper.zone_fds()
            try:
                yield Claims(runs, slabs)
            finally:
                for fd in slabs.values():
                    os.close(fd)

    def _take_out(self, extents: Sequence[Extent]) -> dict[int, int]:
        """Generations by page, of those that are held."""
        with self._lock:
            return {
                page_id: self._generation_of.pop(page_id)
                for extent in extents
                for page_id in extent.page_ids
                if page_id in self._generation_of
            }

    def forget(self) -> None:
        """Nothing is held any more: vattd has been told so, and the mapper is closed."""
        self._generation_of.clear()
        self._left = FreeExtents()

    def _take_in(self, grant: Grant, asked_pages: int) -> list[Extent]:
        """Import what was granted, or cancel the grant."""
        with ExitStack() as undo:
            undo.callback(self._client.cancel, grant.request_id)
            runs = [GrantedRun.from_wire(leased, self._mapper.page_size_bytes) for leased in grant.runs]
            page_count = sum(run.extent.page_count for run in runs)
            if not 1 <= page_count <= asked_pages:
                raise VattError(f"vattd granted {page_count} pages where {asked_pages} were asked for")
            with self._importing:
                self._check_is_current(runs)
                import_runs(runs, self._mapper, self._connection.handles)
                with self._lock:
                    for run in runs:
                        self._generation_of.update(dict.fromkeys(run.extent.page_ids, run.generation))
            undo.pop_all()
        return [run.extent for run in runs]

    def _check_is_current(self, runs: Sequence[GrantedRun]) -> None:
        """What a vattd granted whose end came before its pages could be claimed is nobody's."""
        incarnation = self._connection.attached.incarnation
        if any(run.generation >> GENERATION_BITS != incarnation for run in runs):
            raise StaleGrant("the pages were granted by a vattd that has ended since")


def _gone(extent: Extent, refusal: DriverError) -> list[Extent]:
    """What the driver let go of although it refused to let go of all. Of a lost device's pages none may be used again,
    so it does not matter which those are."""
    if not isinstance(refusal, NotReleased):
        return []
    kept_ids = {page_id for kept in refusal.extents for page_id in kept.page_ids}
    return extents_of(set(extent.page_ids) - kept_ids)


def _page_runs(extent: Extent, generation_of: Mapping[int, int]) -> Iterator[vatt_pb2.PageRun]:
    """The extent's pages as the wire names them: a run has one generation."""
    for generation, page_ids in groupby(extent.page_ids, key=generation_of.__getitem__):
        pages = list(page_ids)
        yield vatt_pb2.PageRun(first_page_id=pages[0], page_count=len(pages), generation=generation)
