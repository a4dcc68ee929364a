"""The three sockets of a device, with the modes that they must have."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from vatt.protocol import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vattd.admin import AdminService
from vattd.doorkeeper import refuse_descriptors_at
from vattd.handle_server import HandleServer
from vattd.methods import methods_of
from vattd.rpc_calls import CountedCalls, RpcCalls
from vattd.service import EngineService

log = logging.getLogger(__name__)

# Streams end when their mailboxes close; whoever is still under way then has this long.
STOP_GRACE_S = 1.0
GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Far more calls than an engine has under way on its connection.
    ("grpc.max_concurrent_streams", 1024),
    # By itself gRPC begins at 1000 calls that wait to be looked at to cancel calls at random, innocent ones among them.
    ("grpc.server.max_pending_requests", 1 << 16),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 16),
]


async def serve_sockets(
    stack: AsyncExitStack,
    sockets: Sockets,
    handles: HandleServer,
    engine: EngineService,
    admin: AdminService,
    calls: RpcCalls,
) -> None:
    """All three doors. Any user may knock at the engines' two, since the handle socket sees who it is. gRPC calls are
    counted in `calls`."""
    with _umask(0o111):
        handles.listen(sockets.handles)
        stack.callback(handles.close)
        server = grpc.aio.server(options=GRPC_OPTIONS)
        await _serve_grpc(stack, server, sockets.engine, "EngineService", engine, calls)
    with _umask(0o177):
        server = grpc.aio.server(options=GRPC_OPTIONS)
        await _serve_grpc(stack, server, sockets.admin, "AdminService", admin, calls)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """So that a socket never exists with a wider mode than it should."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


async def _serve_grpc(
    stack: AsyncExitStack, server: grpc.aio.Server, path: Path, name: str, service: object, calls: RpcCalls
) -> None:
    """Serve at a Unix socket, with health and reflection beside the service; `stack` stops it."""
    descriptor = pb.DESCRIPTOR.services_by_name[name]
    server.add_generic_rpc_handlers((CountedCalls(methods_of(descriptor, service), calls),))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for whole in ("", descriptor.full_name):
        await health.set(whole, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (descriptor.full_name, "grpc.health.v1.Health", reflection.SERVICE_NAME), server
    )
    server.add_insecure_port(f"unix:{path}")
    if not refuse_descriptors_at(path):
        log.info(
            "this kernel cannot refuse descriptors that clients send to %s (Linux 6.16 can): see security.md", path
        )
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
