"""The managers of transformers' continuous batching, with caches on a session's pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import transformers
from transformers.generation.continuous_batching import RequestState, continuous_api
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from vatt.errors import InvalidRequest
from vattention.integrations.continuous_batching.sector_cache import SectorCache
from vattention.integrations.continuous_batching.sector_scheduler import PATIENT_SCHEDULERS, PatientFIFO
from vattention.integrations.rebinding import rebound
from vattention.session import Session

# Both it and its tests know what is inside of transformers' continuous batching, which changes with every release.
SUPPORTED_RELEASE = (5, 23)

# Held while a name means something else for one manager only.
_creating = threading.Lock()
# Held by the one `paged_batching` there may be.
_open = threading.Lock()


@contextmanager
def paged_batching(session: Session) -> Iterator[None]:
    """Put the caches of all continuous batching that begins in here on the session's pages.

    That is what `generate_batch`, `init_continuous_batching` and `continuous_batching_context_manager` begin, of any
    model of this process, on whatever thread. Running requests give way when vattd wants their pages, unless the
    session has an `on_pressure` of its own. At the end, and when the session is closed, what still runs is stopped and
    every page is back. Raises InvalidRequest for a transformers that it does not know, and inside of another
    `paged_batching`.
    """
    _check_release()
    if not _open.acquire(blocking=False):
        raise InvalidRequest("this process is inside of a `paged_batching` already: leave that one first")
    with ExitStack() as undo:
        undo.callback(_open.release)
        batching = _Batching(session)
        session.close_first(batching)
        undo.callback(batching.close)
        if session.on_pressure is None:
            session.on_pressure = batching.ask
            undo.callback(_leave_pressure, session, batching)
        undo.enter_context(rebound(continuous_api, ContinuousBatchingManager=batching.manager_class()))
        yield


class _Batching:
    """The managers that one `paged_batching` made, and the caches of each."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._managers: list[_SectorManager] = []

    def manager_class(self) -> type[_SectorManager]:
        """A class, not a function: transformers asks whether a manager that it kept is an instance."""
        return type("SectorManager", (_SectorManager,), {"batching": self})

    def new_cache(self, manager: _SectorManager, **options: Any) -> SectorCache:
        cache = SectorCache(self._session, **options)
        manager.caches.append(cache)
        return cache

    def add(self, manager: _SectorManager) -> None:
        self._managers.append(manager)

    def remove(self, manager: _SectorManager) -> None:
        if manager in self._managers:
            self._managers.remove(manager)

    def ask(self, page_count: int) -> None:
        """vattd wants pages that requests run with."""
        for manager in list(self._managers):
            for cache in list(manager.caches):
                cache.ask(page_count)

    def close(self) -> None:
        """Stop what runs, whose requests fail, and give everything back. Idempotent."""
        with ExitStack() as ends:  # all of them, whatever one raises
            for manager in list(self._managers):
                ends.callback(manager.end)


class _SectorManager(ContinuousBatchingManager):
    """Makes its cache on leased pages, and gives them back when no request is left."""

    batching: _Batching

    def __init__(self, *args: Any, **options: Any) -> None:
        self.caches: list[SectorCache] = []
        super().__init__(*args, **options)
        self.batching.add(self)

    def destroy(self) -> None:
        super().destroy()  # no thread runs any more
        while self.caches:
            self.caches[-1].close()
            self.caches.pop()
        self.batching.remove(self)

    def end(self) -> None:
        if self.is_running():
            self.stop(hard_stop=True)
        if vars(self.model).get("_cached_continuous_batching_manager") is self:
            del self.model._cached_continuous_batching_manager
        self.destroy()

    def _create_batch_processor(self) -> Any:
        cache = partial(self.batching.new_cache, self)
        names = {"PagedAttentionCache": cache, "SCHEDULER_MAPPING": PATIENT_SCHEDULERS, "FIFOScheduler": PatientFIFO}
        with _creating, rebound(continuous_api, **names):
            processor = super()._create_batch_processor()
        scheduler: Any = processor.scheduler
        scheduler.fail = partial(_fail, processor)
        return processor

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        goes_on = super()._generation_loop_body(batch_processor, bootstrapping)
        if not batch_processor.has_pending_requests():
            batch_processor.cache.rest()
        return bool(goes_on)

    def _run_generation_loop(self) -> None:
        super()._run_generation_loop()
        for cache in self.caches:  # after an error too, when all requests have failed
            cache.rest()


def _leave_pressure(session: Session, batching: _Batching) -> None:
    """Unless somebody else has taken it over meanwhile."""
    if session.on_pressure == batching.ask:
        session.on_pressure = None


def _fail(processor: Any, error: Exception, state: RequestState) -> None:
    """End one request with an error, and say so to who waits for it."""
    processor.offloading_manager.free_request_cpu_cache(state)
    processor._handle_request_error(error, state)


def _check_release() -> None:
    release = ".".join(map(str, SUPPORTED_RELEASE))
    if tuple(map(int, transformers.__version__.split(".")[:2])) != SUPPORTED_RELEASE:
        raise InvalidRequest(
            f"continuous batching on leased pages needs transformers {release}, not {transformers.__version__}: "
            f"pip install 'transformers=={release}.*'"
        )
