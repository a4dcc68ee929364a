"""An engine's session with vattd: pages leased, imported, and returned."""

from __future__ import annotations

import enum
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vatt.errors import Closed, InvalidRequest, LimitExceeded, PoolExhausted, SessionFenced, VattError
from vatt.pages import Extent, extents_of
from vatt.usage import Usage
from vatt.v1 import vatt_pb2
from vattention import fork_guard
from vattention.config import read_config
from vattention.connection import Caller, Connection
from vattention.engine_client import EngineClient, Grant
from vattention.integers import as_integer
from vattention.mapper import Mapper
from vattention.page_cache import PageCache
from vattention.page_import import GrantedRun, import_runs
from vattention.page_source import LeasePurpose
from vattention.vmm import open_mapping

log = logging.getLogger(__name__)

MAX_WAIT_S = 3600.0
UUID_PREFIXES = ("GPU-", "MIG-")
# A busy engine may keep this part of the pool unmapped, so as not to lease what it gave back a moment ago.
SPARE_DIVISOR = 40


class SessionState(enum.Enum):
    ATTACHED = "attached"
    FENCED = "fenced"  # the stream broke: pages stay, new ones come after reattach()
    CLOSED = "closed"


class Closeable(Protocol):
    def close(self) -> None: ...


class Session:
    """This process's attachment to one device's vattd, as one tenant. Thread-safe; closed to forked children.

    `mapper` maps the session's pages, `pages` keeps some at hand; KV caches use both.
    Invariant: `_generation_of` holds exactly the pages that are leased and imported, by page id.
    """

    def __init__(self, connection: Connection, mapper: Mapper) -> None:
        """Takes over both; `connect` is how to get one."""
        attached = connection.attached
        self._connection = connection
        self._birth = fork_guard.Birth()
        self._client = EngineClient(
            connection.stub, attached.key, attached.max_runs_per_message, attached.max_pages_per_lease
        )
        self._lock = threading.Lock()
        # Two imports at a time could both find a slab's descriptor missing.
        self._importing = threading.Lock()
        self._generation_of: dict[int, int] = {}
        self._dependents: weakref.WeakSet[Closeable] = weakref.WeakSet()
        self._closed = False
        self.mapper = mapper
        spare_pages = attached.pool_pages // SPARE_DIVISOR
        self.pages = PageCache(self, lambda: Usage(mapped_pages=mapper.mapped_pages), spare_pages=spare_pages)

    @classmethod
    def connect(
        cls,
        tenant: str,
        *,
        device: str | None = None,
        socket_dir: Path | str | None = None,
        client_name: str | None = None,
        page_size_bytes: int | None = None,
    ) -> Session:
        """Attach to the vattd of `device` (`host` or a GPU's UUID; None: the only one there is).

        Looks in `socket_dir`, else where the environment says; with VATTENTION_DAEMON=embedded a private vattd is
        started, with pages of `page_size_bytes` if that is given.
        Raises InvalidRequest, DaemonUnreachable, TenantDenied, VersionUnsupported, DeviceNotFound.
        """
        with ExitStack() as undo:
            _check_device(device)
            caller = Caller(tenant, client_name if client_name is not None else f"vattention/{_version()}")
            directory = _directory(socket_dir) if socket_dir is not None else None
            connection = Connection.open(caller, read_config(), device, directory, page_size_bytes)
            undo.callback(connection.close)
            facts = connection.attached
            mapper = Mapper(open_mapping(facts.device.backend, facts.device.uuid, facts.page_size_bytes))
            undo.callback(mapper.close)
            session = cls(connection, mapper)
            undo.pop_all()
        return session

    @property
    def session_id(self) -> str:
        return self._connection.attached.key.session_id

    @property
    def page_size_bytes(self) -> int:
        return self.mapper.page_size_bytes

    @property
    def pool_pages(self) -> int:
        """The most pages that could ever be leased: the pool's limit, which all sessions share."""
        return self._connection.attached.pool_pages

    @property
    def leased_pages(self) -> int:
        return len(self._generation_of)

    @property
    def state(self) -> SessionState:
        if self._closed:
            return SessionState.CLOSED
        return SessionState.ATTACHED if self._connection.stream.ended is None else SessionState.FENCED

    @property
    def last_notice(self) -> vatt_pb2.Notice | None:
        """What vattd said last: that it stops, or that the device is lost."""
        return self._connection.stream.last_notice

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        """Lease pages and import them, ready to map: at least `min_page_count` (0: all of them), or none and an error.

        Only ADMIT may wait. Raises PoolExhausted, LimitExceeded, OutOfMemory, SessionFenced, ShuttingDown,
        DaemonUnreachable.
        """
        self._check_usable()
        page_count = as_integer(page_count, "page_count")
        min_page_count = as_integer(min_page_count, "min_page_count")
        if page_count < 1 or not 0 <= min_page_count <= page_count:
            raise InvalidRequest(f"a lease of {page_count} pages, at least {min_page_count}")
        _check_wait(wait_s, purpose)
        least = min_page_count or page_count
        deadline_s = time.monotonic() + wait_s  # for all parts together
        held: list[Extent] = []
        held_count = 0
        with self._closed_meanwhile(), ExitStack() as undo:
            # One request may ask for so many pages at most; the rest is asked for in further ones.
            while held_count < page_count:
                ask = min(page_count - held_count, self._connection.attached.max_pages_per_lease)
                left_s = max(0.0, deadline_s - time.monotonic()) if wait_s else 0.0
                try:
                    grant = self._client.lease(ask, max(1, min(ask, least - held_count)), purpose, left_s)
                except (PoolExhausted, LimitExceeded):
                    if held and held_count >= least:
                        break
                    raise
                extents = self._take_in(grant, ask)
                undo.callback(self.give_back, extents)
                held += extents
                granted = sum(extent.page_count for extent in extents)
                held_count += granted
                if granted < ask:
                    break
            undo.pop_all()
        return held

    def give_back(self, extents: Sequence[Extent]) -> None:
        """Return pages that are mapped nowhere and that the device has stopped using.

        Pages that the session does not hold (any more) are passed over, so a repeat does no harm. A vattd that cannot
        be reached is told later.
        """
        self._birth.check()
        with self._lock:
            generation_of = {
                page_id: self._generation_of.pop(page_id)
                for extent in extents
                for page_id in extent.page_ids
                if page_id in self._generation_of
            }
        released: list[vatt_pb2.PageRun] = []
        try:
            for extent in extents_of(generation_of):
                self.mapper.release(extent)
                released += _page_runs(extent, generation_of)
                for page_id in extent.page_ids:
                    del generation_of[page_id]
        finally:
            with self._lock:
                self._generation_of.update(generation_of)  # what the driver refused to release stays held
            self._client.return_pages(released)

    def report_usage(self, usage: Usage) -> None:
        """Tell vattd what the pages are used for, for its status and metrics. The page cache does it."""
        self._check_usable()
        with self._closed_meanwhile():
            self._client.report_usage(usage)

    def reattach(self) -> None:
        """Go on after the stream broke, as the same session with the same pages.

        Raises SessionUnknown if vattd has forgotten it (a new vattd has): then close this one and connect anew.
        """
        self._birth.check()
        if self._closed:
            raise Closed("the session is closed")
        with self._importing:
            self._connection.resume()
        self._client.settle()

    def close_first(self, dependent: Closeable) -> None:
        """Have close() close `dependent` before the session's own parts; it is not kept alive by this."""
        self._dependents.add(dependent)

    def close(self) -> None:
        """Close the session's KV caches, return every page, detach. Idempotent; in a forked child it does nothing.

        Raises the first error. If one left pages mapped or in use, vattd keeps them from others until this process
        ends: it is told nothing but the end of the stream.
        """
        if not self._birth.is_here:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            dependents = list(self._dependents)
        self._client.leave()
        try:
            _close_each([*dependents, self.pages])
            self.mapper.close()
            # Only here is it sure that no page is mapped or in use: vattd lends what a detached session had to others.
            self._detach()
            self._generation_of.clear()
        finally:
            self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        self._birth.check()
        if self._closed:
            raise Closed("the session is closed")
        why = self._connection.stream.ended
        if why is not None:
            raise SessionFenced(f"session {self.session_id} lost its stream ({why}): reattach() to go on")

    @contextmanager
    def _closed_meanwhile(self) -> Iterator[None]:
        """A close() in another thread breaks what is under way anywhere; say what it was."""
        try:
            yield
        except VattError as error:
            if self._closed and not isinstance(error, Closed):
                raise Closed("the session was closed meanwhile") from error
            raise

    def _take_in(self, grant: Grant, asked_pages: int) -> list[Extent]:
        """Import what was granted, or cancel the grant."""
        with ExitStack() as undo:
            undo.callback(self._client.cancel, grant.request_id)
            runs = [GrantedRun.from_wire(leased, self.page_size_bytes) for leased in grant.runs]
            page_count = sum(run.extent.page_count for run in runs)
            if not 1 <= page_count <= asked_pages:
                raise VattError(f"vattd granted {page_count} pages where {asked_pages} were asked for")
            with self._importing:
                import_runs(runs, self.mapper, self._connection.handles)
            with self._lock:
                for run in runs:
                    self._generation_of.update(dict.fromkeys(run.extent.page_ids, run.generation))
            undo.pop_all()
        return [run.extent for run in runs]

    def _detach(self) -> None:
        self._connection.stream.expect_end()
        try:
            self._client.detach()
        except VattError as error:  # a vattd that is gone holds nothing of ours; a fenced one sees the process end
            log.info("session %s ended without a word to vattd: %s", self.session_id, error)


def _close_each(parts: Iterable[Closeable]) -> None:
    """Close every part, whatever became of the others; then raise the first error."""
    first: BaseException | None = None
    for part in parts:
        try:
            part.close()
        except BaseException as error:  # noqa: BLE001  raised below, an interrupt too
            first = first or error
    if first is not None:
        raise first


def _directory(path: Path | str) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise InvalidRequest(f"socket_dir must be a path, not {path!r}") from error


def _check_device(device: str | None) -> None:
    if device is not None and not (isinstance(device, str) and (device == "host" or device[:4] in UUID_PREFIXES)):
        raise InvalidRequest(
            f"device is {device!r}: give 'host' or a GPU's UUID (`vattctl status` and `nvidia-smi -L` show it), or "
            "leave it out where there is one vattd"
        )


def _check_wait(wait_s: float, purpose: LeasePurpose) -> None:
    if isinstance(wait_s, bool) or not isinstance(wait_s, (int, float)) or not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidRequest(f"wait_s must be 0 to {MAX_WAIT_S:g} seconds, not {wait_s!r}")  # nan is not between
    if wait_s and purpose is not LeasePurpose.ADMIT:
        raise InvalidRequest("only a lease to ADMIT may wait")


def _page_runs(extent: Extent, generation_of: Mapping[int, int]) -> Iterator[vatt_pb2.PageRun]:
    """The extent's pages as the wire names them: a run has one generation."""
    for generation, page_ids in groupby(extent.page_ids, key=generation_of.__getitem__):
        pages = list(page_ids)
        yield vatt_pb2.PageRun(first_page_id=pages[0], page_count=len(pages), generation=generation)


def _version() -> str:
    try:
        return metadata.version("vattd")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
