"""What an operator does to a running vattd, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

ANSWER_WITHIN_S = 20.0


class Operator:
    """The admin socket's client half."""

    def __init__(self, admin: vatt_pb2_grpc.AdminServiceStub) -> None:
        self.admin = admin

    def status(self) -> pb.GetStatusResponse:
        return self.admin.GetStatus(pb.GetStatusRequest(), timeout=ANSWER_WITHIN_S)

    def reserve(self, tenant: str, **fields: Any) -> pb.Tenant:
        return self.admin.Reserve(pb.ReserveRequest(tenant=tenant, **fields), timeout=ANSWER_WITHIN_S).tenant

    def unreserve(self, tenant: str) -> pb.Guarantee:
        return self.admin.Unreserve(pb.UnreserveRequest(tenant=tenant), timeout=ANSWER_WITHIN_S).guarantee

    def tenant(self, name: str) -> pb.Tenant:
        return next(tenant for tenant in self.status().tenants if tenant.name == name)

    def session(self, session_id: str) -> pb.Session:
        return next(session for session in self.status().sessions if session.session_id == session_id)

    def until(self, condition: Callable[[pb.GetStatusResponse], bool], within_s: float = ANSWER_WITHIN_S) -> float:
        """Ask for status until it is so; how long that took in seconds."""
        begin_s = time.monotonic()
        while not condition(self.status()):
            assert time.monotonic() - begin_s < within_s, f"not so within {within_s} s: {self.status()}"
        return time.monotonic() - begin_s


@contextmanager
def operator(sockets: Sockets) -> Iterator[Operator]:
    with grpc.insecure_channel(f"unix:{sockets.admin}") as channel:
        yield Operator(vatt_pb2_grpc.AdminServiceStub(channel))
