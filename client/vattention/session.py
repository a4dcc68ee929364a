"""An engine's session with vattd: pages leased, imported, and returned."""

from __future__ import annotations

import enum
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vatt.errors import (
    Closed,
    DaemonUnreachable,
    Draining,
    InvalidRequest,
    SessionEvicted,
    SessionFenced,
    SessionUnknown,
    ShuttingDown,
    VattError,
)
from vatt.pages import Extent
from vatt.usage import Usage
from vatt.v1 import vatt_pb2
from vattention import fork_guard
from vattention.config import read_config
from vattention.connection import Caller, Connection
from vattention.engine_client import EngineClient
from vattention.guarantee import Guarantee
from vattention.leases import Leases, StaleGrant
from vattention.mapper import Mapper
from vattention.page_cache import PageCache
from vattention.page_source import LeasePurpose, check_wait
from vattention.reattacher import Reattacher
from vattention.reclaimer import OnPressure, Reclaimer
from vattention.vmm import open_mapping

log = logging.getLogger(__name__)

UUID_PREFIXES = ("GPU-", "MIG-")
# A busy engine may keep this part of the pool unmapped, so as not to lease what it gave back a moment ago.
SPARE_DIVISOR = 40
# How long a lease waits for a vattd that is being started anew, and for the word that it has gone.
OUTAGE_PATIENCE_S = 5.0
OUTAGE_NOTICE_S = 0.5


class SessionState(enum.Enum):
    ATTACHED = "attached"
    FENCED = "fenced"  # the stream broke: pages stay, new ones come once the session is back, which it tries by itself
    LOST = "lost"  # it cannot come back: pages stay mapped until close(); connect anew
    CLOSED = "closed"


class Closeable(Protocol):
    def close(self) -> None: ...


class Session:
    """This process's attachment to one device's vattd, as one tenant. Thread-safe; closed to forked children.

    `mapper` maps the session's pages, `pages` keeps some at hand; KV caches use both. Pages that vattd wants back are
    given back in the background: see `on_pressure`.
    """

    def __init__(
        self,
        connection: Connection,
        mapper: Mapper,
        on_pressure: OnPressure | None = None,
        patience_s: float = OUTAGE_PATIENCE_S,
    ) -> None:
        """Takes over both; `connect` is how to get one."""
        self._patience_s = patience_s
        attached = connection.attached
        self._connection = connection
        self._birth = fork_guard.Birth()
        self._client = EngineClient(
            connection.stub, attached.key, attached.max_runs_per_message, attached.max_pages_per_lease
        )
        self._leases = Leases(connection, self._client, mapper)
        self._lock = threading.Lock()
        self._dependents: weakref.WeakSet[Closeable] = weakref.WeakSet()
        self._closed = False
        self.mapper = mapper
        self.pages = PageCache(
            self,
            lambda: Usage(mapped_pages=mapper.mapped_pages),
            spare_pages=lambda: self.pool_pages // SPARE_DIVISOR,
        )
        self._reclaimer = Reclaimer(self.pages, self.give_back, self._client.answer_reclaim, on_pressure)
        connection.tidings.tell_of_reclaims(self._reclaimer.ask)
        self._reattacher = Reattacher(self.reattach, lambda: self._connection.stream.ended is None)
        connection.on_end = self._reattacher.wake
        if connection.stream.ended is not None:  # it broke already
            self._reattacher.wake()

    @classmethod
    def connect(
        cls,
        tenant: str,
        *,
        device: str | None = None,
        socket_dir: Path | str | None = None,
        client_name: str | None = None,
        page_size_bytes: int | None = None,
        on_pressure: OnPressure | None = None,
        patience_s: float = OUTAGE_PATIENCE_S,
    ) -> Session:
        """Attach to the vattd of `device` (`host` or a GPU's UUID; None: the only one there is).

        Looks in `socket_dir`, else where the environment says; with VATTENTION_DAEMON=embedded a private vattd is
        started, with pages of `page_size_bytes` if that is given. `on_pressure` is the property of that name.
        When vattd ends, the session re-attaches by itself, with all its pages, as soon as one runs again; `patience_s`
        is how long a lease waits for that before it raises SessionFenced.
        Raises InvalidRequest, DaemonUnreachable, TenantDenied, VersionUnsupported, DeviceNotFound, Draining,
        MpsRefused.
        """
        with ExitStack() as undo:
            _check_device(device)
            _check_callback(on_pressure)
            check_wait(patience_s)
            caller = Caller(tenant, client_name if client_name is not None else f"vattention/{_version()}")
            directory = _directory(socket_dir) if socket_dir is not None else None
            connection = Connection.open(caller, read_config(), device, directory, page_size_bytes)
            undo.callback(connection.close)
            facts = connection.attached
            mapper = Mapper(open_mapping(facts.device.backend, facts.device.uuid, facts.page_size_bytes))
            undo.callback(mapper.close)
            session = cls(connection, mapper, on_pressure, patience_s)
            undo.pop_all()
        return session

    @property
    def session_id(self) -> str:
        return self._connection.attached.key.session_id

    @property
    def device_uuid(self) -> str:
        """As NVML names the device; "host" for host memory."""
        return self._connection.attached.device.uuid

    @property
    def page_size_bytes(self) -> int:
        return self.mapper.page_size_bytes

    @property
    def pool_pages(self) -> int:
        """The most pages that could be leased: the pool's limit, or the tenant's max, which its sessions share."""
        pool_pages, guarantee = self._connection.attached.pool_pages, self.guarantee
        if guarantee is None or guarantee.max_bytes is None:
            return pool_pages
        return min(pool_pages, guarantee.max_bytes // self.page_size_bytes)

    @property
    def guarantee(self) -> Guarantee | None:
        """What the session's tenant is guaranteed now; None until vattd has said it, right after connecting."""
        return self._connection.tidings.guarantee

    @property
    def leased_pages(self) -> int:
        return self._leases.page_count

    @property
    def on_pressure(self) -> OnPressure | None:
        """Called when vattd wants pages back that running requests hold, with how many are wanted beyond what was idle.

        Called in a thread of the library's, which holds no lock. It should free or preempt requests (`free_slot`,
        `shrink`), or tell the scheduler to. Pages that are idle when it returns are given back at once; vattd asks
        again for those that come free later. It may call anything of the session, `close` as well; what it raises is
        logged.
        """
        return self._reclaimer.on_pressure

    @on_pressure.setter
    def on_pressure(self, callback: OnPressure | None) -> None:
        _check_callback(callback)
        self._reclaimer.on_pressure = callback

    @property
    def state(self) -> SessionState:
        if self._closed:
            return SessionState.CLOSED
        if self._connection.stream.ended is None:
            return SessionState.ATTACHED
        return SessionState.FENCED if self._reattacher.lost is None else SessionState.LOST

    @property
    def disputed_pages(self) -> int:
        """After vattd was started anew: of the pages that the session claimed, how many another session claims too.

        They stay mapped and are lent to nobody, but vattd does not count them as this session's.
        """
        return sum(run.page_count for run in self._connection.attached.refused_claims)

    @property
    def last_notice(self) -> vatt_pb2.Notice | None:
        """What vattd said last: that it stops, say, or that the device is lost."""
        return self._connection.tidings.last_notice

    @property
    def draining(self) -> bool:
        """An operator has this vattd drained: let running requests end, begin no others."""
        return self._connection.tidings.is_draining

    @property
    def evicted(self) -> bool:
        """An operator asked this session to leave: no page is lent to it any more."""
        return self._connection.tidings.is_evicted

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        """Lease pages and import them, ready to map: at least `min_page_count` (0: all of them), or none and an error.

        Only ADMIT may wait. While vattd is being started anew, all but AHEAD wait for it: see `connect`. Raises
        PoolExhausted, WaitHopeless, LimitExceeded, OutOfMemory, SessionFenced, SessionUnknown (the session is lost),
        SessionEvicted, ShuttingDown, Draining (an ADMIT), DaemonUnreachable.
        """
        check_wait(wait_s)
        began_s = time.monotonic()
        patient_until_s = began_s + (0.0 if purpose is LeasePurpose.AHEAD else max(self._patience_s, wait_s))
        with self._closed_meanwhile():
            while True:
                self._wait_until_attached(patient_until_s)
                left_s = max(0.0, began_s + wait_s - time.monotonic()) if wait_s else wait_s
                try:
                    return self._leases.lease(page_count, min_page_count, purpose, left_s)
                except (DaemonUnreachable, SessionFenced, ShuttingDown) as error:
                    # Nothing was leased, or it will be taken back: safe to ask again, if it is vattd that went away.
                    has_gone = isinstance(error, StaleGrant) or self._connection.stream.ends_within(OUTAGE_NOTICE_S)
                    is_outage = has_gone or isinstance(error, ShuttingDown)
                    if not is_outage or time.monotonic() >= patient_until_s:
                        raise

    def check_admits(self) -> None:
        """Raises Draining or SessionEvicted if no new request should begin, whatever pages are at hand."""
        if self.evicted:
            raise SessionEvicted("an operator asked this session to leave: end its requests and close it")
        if self.draining:
            raise Draining("vattd is drained: let running requests end, and begin no others until it is resumed")

    def give_back(self, extents: Sequence[Extent]) -> None:
        """Return pages that are mapped nowhere and that the device has stopped using.

        Pages that the session does not hold (any more) are passed over, so a repeat does no harm. A vattd that cannot
        be reached is told later. Raises StillHeld, a DriverError, with the pages that the driver does not let go of;
        the others have gone back.
        """
        self._birth.check()
        self._leases.give_back(extents)

    def report_usage(self, usage: Usage) -> None:
        """Tell vattd what the pages are used for, for its status and metrics. The page cache does it."""
        with self._closed_meanwhile():
            self._check_usable()
            self._client.report_usage(usage)

    def reattach(self) -> None:
        """Go on after the stream broke, as the same session with the same pages.

        It is tried in the background as well. Raises SessionUnknown if vattd does not know the session: then close this
        one and connect anew.
        """
        self._birth.check()
        if self._closed:
            raise Closed("the session is closed")
        was_fenced = self._connection.stream.ended is not None
        self._leases.resume()
        self._reattacher.note_attached()
        if was_fenced:
            log.warning("session %s is back", self.session_id)  # as loud as the word that it is fenced
        if self.disputed_pages:
            log.error("session %s: another session claims %d pages of it", self.session_id, self.disputed_pages)
        self._client.settle()
        self.pages.report_again()

    def close_first(self, dependent: Closeable) -> None:
        """Have close() close `dependent` before the session's own parts; it is not kept alive by this."""
        self._dependents.add(dependent)

    def close(self) -> None:
        """Close the session's KV caches, return every page, detach. Idempotent; in a forked child it does nothing.

        An `on_pressure` under way is not waited for, and may be who calls. A vattd that cannot be reached is told when
        one runs again, in the background.
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
        self._reattacher.stop()
        try:
            _close_each([self._reclaimer, *dependents, self.pages])
            self.mapper.close()
            # Only here is it sure that no page is mapped or in use: vattd lends what a detached session had to others.
            self._detach()
            self._leases.forget()
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
            if self._reattacher.lost is not None:
                raise SessionUnknown(
                    f"session {self.session_id} is lost ({self._reattacher.lost}): close it and connect anew"
                ) from self._reattacher.lost
            raise SessionFenced(f"session {self.session_id} lost its stream ({why}): it re-attaches when vattd is back")

    def _wait_until_attached(self, until_s: float) -> None:
        """Raises what `_check_usable` does, if the session does not come back until then."""
        if self._connection.stream.ended is not None:
            self._birth.check()
            self._reattacher.wait(until_s - time.monotonic())
        self._check_usable()

    @contextmanager
    def _closed_meanwhile(self) -> Iterator[None]:
        """A close() in another thread breaks what is under way anywhere; say what it was."""
        try:
            yield
        except VattError as error:
            if self._closed and not isinstance(error, Closed):
                raise Closed("the session was closed meanwhile") from error
            raise

    def _detach(self) -> None:
        self._connection.stream.expect_end()
        try:
            self._client.detach()
        except VattError as error:
            log.info("session %s is closed, and vattd is yet to be told: %s", self.session_id, error)
            self._connection.detach_later()


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


def _check_callback(callback: OnPressure | None) -> None:
    if callback is not None and not callable(callback):
        raise InvalidRequest(f"on_pressure must be callable, not {callback!r}")


def _version() -> str:
    try:
        return metadata.version("vattd")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
