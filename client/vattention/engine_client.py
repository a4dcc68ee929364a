"""The engine's RPCs, with our errors and the repeats that the wire makes safe."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from vatt.errors import DaemonUnreachable, SessionUnknown, VattError
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.page_source import LeasePurpose
from vattention.wire_errors import from_rpc

log = logging.getLogger(__name__)

# A local daemon answers in well under a millisecond; past this it is stopped or gone.
RPC_TIMEOUT_S = 10.0
_TRIES = 2
_PURPOSES = {
    LeasePurpose.ADMIT: vatt_pb2.LEASE_PURPOSE_ADMIT,
    LeasePurpose.GROW: vatt_pb2.LEASE_PURPOSE_GROW,
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
        self, stub: vatt_pb2_grpc.EngineServiceStub, key: vatt_pb2.SessionKey, max_runs_per_message: int
    ) -> None:
        self._stub = stub
        self._key = key
        self._max_runs = max_runs_per_message
        self._lock = threading.Lock()
        self._owed_cancels: list[str] = []
        self._owed_returns: list[vatt_pb2.PageRun] = []

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
            answer = _repeat(lambda: self._stub.LeasePages(request, timeout=RPC_TIMEOUT_S + wait_s))
        except (DaemonUnreachable, KeyboardInterrupt, SystemExit):
            # Whether the pages were granted is not known: take them back, or see to it that they never are.
            self.cancel(request.request_id)
            raise
        return Grant(request.request_id, tuple(answer.runs))

    def cancel(self, request_id: str) -> None:
        """Take a grant back. Never raises: what vattd could not be told now, it is told later."""
        with self._lock:
            self._owed_cancels.append(request_id)
        self._settle_quietly()

    def return_pages(self, runs: Iterable[vatt_pb2.PageRun]) -> None:
        """Return pages. Never raises, as cancel does not."""
        with self._lock:
            self._owed_returns.extend(runs)
        self._settle_quietly()

    def report_usage(self, mapped_pages: int) -> None:
        self.settle()
        request = vatt_pb2.ReportUsageRequest(key=self._key, mapped_pages=mapped_pages)
        _repeat(lambda: self._stub.ReportUsage(request, timeout=RPC_TIMEOUT_S))

    def detach(self) -> None:
        request = vatt_pb2.DetachRequest(key=self._key)
        # A repeat may find that the first one was heard.
        with suppress(SessionUnknown):
            _repeat(lambda: self._stub.Detach(request, timeout=RPC_TIMEOUT_S))

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
                _repeat(lambda: self._stub.CancelLease(cancel, timeout=RPC_TIMEOUT_S))  # noqa: B023  called at once
                cancels.pop()
            while returns:
                batch: Sequence[vatt_pb2.PageRun] = returns[: self._max_runs]
                back = vatt_pb2.ReturnPagesRequest(key=self._key, runs=batch)
                _repeat(lambda: self._stub.ReturnPages(back, timeout=RPC_TIMEOUT_S))  # noqa: B023
                del returns[: len(batch)]
        except SessionUnknown:
            return
        except BaseException:
            with self._lock:
                self._owed_cancels += cancels
                self._owed_returns += returns
            raise

    def _settle_quietly(self) -> None:
        try:
            self.settle()
        except VattError as error:
            log.info("vattd could not be told of returned pages yet: %s", error)


def _repeat(call: Callable[[], _T]) -> _T:
    """Call, and call once more if the answer was lost; every method here is safe to repeat."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return call()
        except grpc.RpcError as failed:
            error = from_rpc(failed)
            if not isinstance(error, DaemonUnreachable) or not tries_left:
                raise error from failed
    raise AssertionError  # the last try returns or raises
