"""An engine that speaks the wire by hand, so that tests can say what the library never would."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from vatt.protocol import MAX_FDS_PER_PACKET, MAX_HANDLE_PACKET_BYTES
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

ANSWER_WITHIN_S = 20.0


def reason_of(error: grpc.RpcError) -> str:
    """The stable reason in the error's details."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # every RpcError we get is a Call too
    assert status is not None, f"no details: {error}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "vatt"
    return str(info.reason)


class HandleSocket:
    """The handle socket's client half, with no checks of its own."""

    def __init__(self, sockets: Sockets) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(ANSWER_WITHIN_S)
        self.socket.connect(str(sockets.handles))
        self.welcome = pb.HandleWelcome.FromString(self.socket.recv(MAX_HANDLE_PACKET_BYTES))

    def pull(self, runs: Sequence[pb.PageRun], pull_id: int = 1) -> tuple[pb.HandleDelivery, list[int]]:
        self.socket.send(pb.HandlePull(pull_id=pull_id, runs=runs).SerializeToString())
        return self.receive()

    def receive(self) -> tuple[pb.HandleDelivery, list[int]]:
        packet, fds, flags, _ = socket.recv_fds(self.socket, MAX_HANDLE_PACKET_BYTES, MAX_FDS_PER_PACKET)
        assert not flags & socket.MSG_CTRUNC
        return pb.HandleDelivery.FromString(packet), list(fds)

    def receive_or_end(self) -> bytes:
        """The next packet; empty if vattd has closed the connection."""
        return self.socket.recv(MAX_HANDLE_PACKET_BYTES)

    def close(self) -> None:
        self.socket.close()


class RawEngine:
    """One attached session."""

    def __init__(self, sockets: Sockets, tenant: str = "test", **attach: Any) -> None:
        self.handles = HandleSocket(sockets)
        # A connection of its own, as an engine's process has.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"unix:{sockets.engine}", options=options)
        self.stub = vatt_pb2_grpc.EngineServiceStub(self.channel)
        request = {"token": self.handles.welcome.token, "min_protocol_version": 1, "max_protocol_version": 1, **attach}
        self.stream: Any = self.stub.Attach(pb.AttachRequest(tenant=tenant, **request))
        self._request_ids = itertools.count(1)
        try:
            self.attached: pb.Attached = next(self.stream).attached
            self.guarantee: pb.Guarantee = next(self.stream).guarantee
        except grpc.RpcError:
            self.close()
            raise
        self.key = self.attached.key

    def lease(
        self,
        page_count: int,
        *,
        fewest: int = 0,
        request_id: str | None = None,
        purpose: pb.LeasePurpose.ValueType = pb.LEASE_PURPOSE_GROW,
        wait_s: float | None = None,
    ) -> list[pb.LeasedRun]:
        request = self.lease_request(page_count, fewest=fewest, request_id=request_id, purpose=purpose, wait_s=wait_s)
        return list(self.stub.LeasePages(request, timeout=ANSWER_WITHIN_S).runs)

    def lease_request(
        self,
        page_count: int,
        *,
        fewest: int = 0,
        request_id: str | None = None,
        purpose: pb.LeasePurpose.ValueType = pb.LEASE_PURPOSE_GROW,
        wait_s: float | None = None,
    ) -> pb.LeasePagesRequest:
        request = pb.LeasePagesRequest(
            key=self.key,
            request_id=request_id or f"r{next(self._request_ids)}",
            page_count=page_count,
            min_page_count=fewest,
            purpose=purpose,
        )
        if wait_s is not None:
            request.wait.CopyFrom(Duration(seconds=int(wait_s), nanos=int(wait_s % 1 * 1e9)))
        return request

    def give_back(self, runs: Sequence[pb.LeasedRun]) -> int:
        request = pb.ReturnPagesRequest(key=self.key, runs=[leased.run for leased in runs])
        return self.stub.ReturnPages(request, timeout=ANSWER_WITHIN_S).returned_pages

    def report(self, **usage: int) -> None:
        """The fields of a ReportUsageRequest; those that are left out are 0."""
        self.stub.ReportUsage(pb.ReportUsageRequest(key=self.key, **usage), timeout=ANSWER_WITHIN_S)

    def detach(self) -> int:
        return self.stub.Detach(pb.DetachRequest(key=self.key), timeout=ANSWER_WITHIN_S).returned_pages

    def close(self) -> None:
        """Break off without a word, as a careless client does."""
        self.stream.cancel()
        self.channel.close()
        self.handles.close()

    def __enter__(self) -> RawEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def page_count_of(runs: Sequence[pb.LeasedRun]) -> int:
    return sum(leased.run.page_count for leased in runs)


def page_ids_of(runs: Sequence[pb.LeasedRun]) -> Iterator[int]:
    for leased in runs:
        yield from range(leased.run.first_page_id, leased.run.first_page_id + leased.run.page_count)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def in_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    """Start `call` on a thread; its result, or the error it raised, will be the list's one item."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # noqa: BLE001 - handed to the test
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome
