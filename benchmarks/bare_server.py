"""The least that leasing could cost in Python: a gRPC server that answers with nothing, and descriptors on a socket.

It speaks as much of vattd's wire as `tests.raw_engine` needs for a lease, a pull and a return, and does nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from vatt.protocol import MAX_HANDLE_PACKET_BYTES
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class BareService(vatt_pb2_grpc.EngineServiceServicer):
    """The same answer to every lease."""

    async def Attach(self, request: pb.AttachRequest, context: Context) -> Any:  # noqa: N802 - gRPC's names
        yield pb.AttachResponse(attached=pb.Attached())
        yield pb.AttachResponse(guarantee=pb.Guarantee())
        await asyncio.get_running_loop().create_future()

    async def LeasePages(self, request: pb.LeasePagesRequest, context: Context) -> pb.LeasePagesResponse:  # noqa: N802
        run = pb.PageRun(first_page_id=1, page_count=request.page_count, generation=1)
        return pb.LeasePagesResponse(runs=[pb.LeasedRun(run=run)])

    async def ReturnPages(self, request: pb.ReturnPagesRequest, context: Context) -> pb.ReturnPagesResponse:  # noqa: N802
        return pb.ReturnPagesResponse()


class BareHandles:
    """Sends as many descriptors as pages are pulled."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = os.open("/dev/null", os.O_RDONLY)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        self._listener.listen()
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.send(pb.HandleWelcome(token=b"any").SerializeToString())
        self._loop.add_reader(connection, self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        packet = connection.recv(MAX_HANDLE_PACKET_BYTES)
        if not packet:
            self._loop.remove_reader(connection)
            connection.close()
            return
        pull = pb.HandlePull.FromString(packet)
        count = sum(run.page_count for run in pull.runs)
        delivery = pb.HandleDelivery(pull_id=pull.pull_id, page_count=count)
        socket.send_fds(connection, [delivery.SerializeToString()], [self._file] * count)


class BareServer:
    """One in a process of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vattd-bare-"))
        command = [sys.executable, "-m", "benchmarks.bare_server", str(self.directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> BareServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self.directory)


async def serve(directory: Path) -> None:
    sockets = Sockets(directory)
    handles = BareHandles(sockets.handles)
    server = grpc.aio.server()
    service = BareService()  # type: ignore[abstract]  # the other calls are never made
    vatt_pb2_grpc.add_EngineServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{sockets.engine}")
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()
    del handles


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
