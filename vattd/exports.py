"""File descriptors of leased pages, for those who hold them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from weakref import WeakValueDictionary

from vatt.errors import PageNotHeld
from vattd.driver_thread import Urgency
from vattd.ledger import Ledger
from vattd.page_run import PageRun
from vattention.vmm.driver import PhysicalDriver

# Of one user at a time: on CUDA the largest takes the driver some milliseconds, and others' leases wait so long.
PULLS_AT_ONCE = 4

DriverCall = Callable[..., Awaitable[list[int]]]


class Exports:
    """Belongs to the event loop. `call` makes a driver call, of an urgency, in the driver's thread."""

    def __init__(self, ledger: Ledger, driver: PhysicalDriver, call: DriverCall) -> None:
        self._ledger, self._driver, self._call = ledger, driver, call
        self._turns: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()  # of those who pull

    async def pull(self, session_id: str, runs: Sequence[PageRun], user: Hashable) -> list[int]:
        """New file descriptors for pages the session holds, in order; the caller closes them. `user` is whose turn it
        takes. Raises PageNotHeld, DriverError, SystemLimit."""
        turn = self._turns.setdefault(user, asyncio.Semaphore(PULLS_AT_ONCE))
        await turn.acquire()
        exporting = asyncio.ensure_future(self._export_held(session_id, runs))
        exporting.add_done_callback(lambda _: turn.release())
        with ExitStack() as undo:
            # Whatever becomes of the caller, the driver makes the descriptors, and somebody has to close them.
            undo.callback(exporting.add_done_callback, _close_result)
            fds = await asyncio.shield(exporting)
            # The session may have returned the pages meanwhile; then they may be another's by now.
            self._check_held(session_id, runs)
            undo.pop_all()
        return fds

    async def _export_held(self, session_id: str, runs: Sequence[PageRun]) -> list[int]:
        self._check_held(session_id, runs)
        page_ids = [page_id for run in runs for page_id in run.extent.page_ids]
        return await self._call(Urgency.EXPORT, self._export, page_ids)

    def _check_held(self, session_id: str, runs: Iterable[PageRun]) -> None:
        for run in runs:
            if not self._ledger.holds(session_id, run):
                raise PageNotHeld(f"this session does not lease {run.extent} under generation {run.generation}")

    def _export(self, page_ids: Iterable[int]) -> list[int]:
        with ExitStack() as undo:
            fds = []
            for page_id in page_ids:
                fds.append(self._driver.export(page_id))
                undo.callback(os.close, fds[-1])
            undo.pop_all()
            return fds


def _close_result(exporting: asyncio.Future[list[int]]) -> None:
    if not exporting.cancelled() and exporting.exception() is None:
        for fd in exporting.result():
            os.close(fd)
