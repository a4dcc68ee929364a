"""The engine's RPCs, with our errors and the repeats that the wire makes safe."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from vatt.errors import Closed, DaemonUnreachable, SessionUnknown, VattError
from vatt.usage import Usage
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.page_source import LeasePurpose
from vattention.wire_errors import from_rpc

log = logging.getLogger(__name__)

# A local daemon answers in well under a millisecond; past this it is stopped or gone.
ANSWER_TIMEOUT_S = 2.0
# For a lease it may have to create the pages first, and a driver takes its time for each.
_PAGE_TIMEOUT_S = 0.001
_TRIES = 2
_PURPOSES = {
    LeasePurpose.ADMIT: vatt_pb2.LEASE_PURPOSE_ADMIT,
    LeasePurpose.GROW: vatt_pb2.LEASE_PURPOSE_GROW,
    LeasePurpose.AHEAD: vatt_pb2.LEASE_PURPOSE_AHEAD,
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a lease."""

    request_id: str
    runs: tuple[vatt_pb2.LeasedRun, ...]


class EngineClient:
    """One session's calls. What could not be told to vattd is kept and told before the next call. Thread-safe."""

    def __init__(
        self,
        stub: vatt_pb2_grpc.EngineServiceStub,
        key: vatt_pb2.SessionKey,
        max_runs_per_message: int,
        max_pages_per_message: int,
    ) -> None:
        self._stub = stub
        self._key = key
        self._max_runs = max_runs_per_message
        self._max_pages = max_pages_per_message
        self._lock = threading.Lock()
        self._owed_cancels: list[str] = []
        self._owed_returns: list[vatt_pb2.PageRun] = []  # each of `_max_pages` pages at most
        self._leaving = False
        self._gave_up = False

    def lease(self, page_count: int, min_page_count: int, purpose: LeasePurpose, wait_s: float) -> Grant:
        self.settle()
        request = vatt_pb2.LeasePagesRequest(
            key=self._key,
            request_id=uuid.uuid4().hex,
            page_count=page_count,
            min_page_count=min_page_count,
            purpose=_PURPOSES[purpose],
        )
        if wait_s > 0:
            wait = Duration()
            wait.FromNanoseconds(int(wait_s * 1e9))
            request.wait.CopyFrom(wait)
        try:
            timeout_s = ANSWER_TIMEOUT_S + page_count * _PAGE_TIMEOUT_S + wait_s
            answer = self._tell(lambda: self._stub.LeasePages(request, timeout=timeout_s))
        except DaemonUnreachable:
            # Whether the pages were granted is not known: they are to be taken back, but nobody listens now.
            self._owe_cancel(request.request_id)
            raise
        except (KeyboardInterrupt, SystemExit):
            self.cancel(request.request_id)
            raise
        return Grant(request.request_id, tuple(answer.runs))

    def cancel(self, request_id: str) -> None:
        """Take a grant back. Never raises: what vattd could not be told now, it is told later."""
        self._owe_cancel(request_id)
        self._settle_quietly()

    def return_pages(self, runs: Iterable[vatt_pb2.PageRun]) -> None:
        """Return pages. Never raises, as cancel does not."""
        with self._lock:
            self._owed_returns += (piece for run in runs for piece in _pieces(run, self._max_pages))
        self._settle_quietly()

    def report_usage(self, usage: Usage) -> None:
        self.settle()
        request = vatt_pb2.ReportUsageRequest(key=self._key, **asdict(usage))
        self._tell(lambda: self._stub.ReportUsage(request, timeout=ANSWER_TIMEOUT_S))

    def answer_reclaim(self, reclaim_id: int) -> None:
        """Say that what could be given back for this Reclaim has been; what is owed to vattd goes first."""
        self.settle()
        request = vatt_pb2.AnswerReclaimRequest(key=self._key, reclaim_id=reclaim_id)
        self._tell(lambda: self._stub.AnswerReclaim(request, timeout=ANSWER_TIMEOUT_S))

    def leave(self) -> None:
        """The session is about to close: from now on one lost answer is enough, and vattd is told nothing more."""
        self._leaving = True

    def detach(self) -> None:
        request = vatt_pb2.DetachRequest(key=self._key)
        # A repeat may find that the first one was heard.
        with suppress(SessionUnknown):
            self._tell(lambda: self._stub.Detach(request, timeout=ANSWER_TIMEOUT_S))

    def settle(self) -> None:
        """Tell vattd what is owed to it. A session that it does not know owes it nothing."""
        with self._lock:
            cancels, self._owed_cancels = self._owed_cancels, []
            returns, self._owed_returns = self._owed_returns, []
        if not cancels and not returns:
            return
        try:
            while cancels:
                cancel = vatt_pb2.CancelLeaseRequest(key=self._key, request_id=cancels[-1])
                self._tell(lambda: self._stub.CancelLease(cancel, timeout=ANSWER_TIMEOUT_S))  # noqa: B023  called at once
                cancels.pop()
            while returns:
                batch = self._first_message(returns)
                back = vatt_pb2.ReturnPagesRequest(key=self._key, runs=batch)
                self._tell(lambda: self._stub.ReturnPages(back, timeout=ANSWER_TIMEOUT_S))  # noqa: B023
                del returns[: len(batch)]
        except SessionUnknown:
            return
        except BaseException:
            with self._lock:
                self._owed_cancels += cancels
                self._owed_returns += returns
            raise

    def _owe_cancel(self, request_id: str) -> None:
        with self._lock:
            self._owed_cancels.append(request_id)

    def _first_message(self, owed: Sequence[vatt_pb2.PageRun]) -> Sequence[vatt_pb2.PageRun]:
        """As many of the runs as one ReturnPages may name."""
        page_counts = accumulate(run.page_count for run in owed[: self._max_runs])
        return owed[: sum(page_count <= self._max_pages for page_count in page_counts)]

    def _tell(self, call: Callable[[], _T]) -> _T:
        if self._gave_up:
            raise DaemonUnreachable("vattd did not answer while the session was closing")
        try:
            return _repeat(call)
        except DaemonUnreachable:
            self._gave_up = self._leaving
            raise

    def _settle_quietly(self) -> None:
        try:
            self.settle()
        except VattError as error:
            log.info("vattd could not be told of returned pages yet: %s", error)


def _repeat(call: Callable[[], _T]) -> _T:
    """Call, and call once more if the connection broke; every method here is safe to repeat.

    A vattd that let the time run out is not asked again: it would take as long once more.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            return call()
        except grpc.RpcError as failed:
            error = from_rpc(failed)
            broke = isinstance(failed, grpc.Call) and failed.code() is grpc.StatusCode.UNAVAILABLE
            if not (broke and isinstance(error, DaemonUnreachable) and tries_left):
                raise error from failed
        except ValueError as failed:
            if not str(failed).startswith("Cannot invoke RPC"):  # gRPC's word for a channel that was closed
                raise
            raise Closed("the session is closed") from failed
    raise AssertionError  # the last try returns or raises


def _pieces(run: vatt_pb2.PageRun, page_count: int) -> Iterator[vatt_pb2.PageRun]:
    """The run in pieces of at most `page_count` pages."""
    for done in range(0, run.page_count, page_count):
        yield vatt_pb2.PageRun(
            first_page_id=run.first_page_id + done,
            page_count=min(page_count, run.page_count - done),
            generation=run.generation,
        )
