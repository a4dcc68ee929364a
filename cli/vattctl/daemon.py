"""The admin side of one running vattd, as vattctl calls it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import grpc

from vatt.errors import DaemonUnreachable, VattError
from vatt.protocol import MAX_MESSAGE_BYTES
from vatt.sockets import Sockets, find_daemon, search_dirs
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattention.vmm import device_uuid

ANSWER_WITHIN_S = 5.0

gpu_option = click.option("--gpu", "device", metavar="N|UUID|host", help="Which vattd, where several run.")
socket_dir_option = click.option(
    "--socket-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where vattd's sockets are.  [default: VATTD_SOCKET_DIR, else the user's and the system's run directories]",
)


def find(device: str | None, socket_dir: Path | None) -> Sockets:
    """Raises DaemonUnreachable with the command to type; InvalidRequest if several run and none is named."""
    if device is not None:
        device = device_uuid(device)
    return find_daemon([socket_dir] if socket_dir is not None else search_dirs(os.environ), device)


def get_status(sockets: Sockets) -> pb.GetStatusResponse:
    """Raises DaemonUnreachable, VattError."""
    with _admin(sockets) as admin:
        return admin.GetStatus(pb.GetStatusRequest(), timeout=ANSWER_WITHIN_S)


@contextmanager
def _admin(sockets: Sockets) -> Iterator[vatt_pb2_grpc.AdminServiceStub]:
    if not os.access(sockets.admin, os.R_OK | os.W_OK) and sockets.admin.exists():
        raise VattError(f"{sockets.admin} is open to its owner only: run vattctl as the user that runs vattd")
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    with grpc.insecure_channel(f"unix:{sockets.admin}", options=options) as channel:
        try:
            yield vatt_pb2_grpc.AdminServiceStub(channel)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                device = sockets.directory.name
                raise DaemonUnreachable(
                    f"no vattd answers at {sockets.admin}: start one with `vattd start --gpu {device}`"
                ) from error
            raise VattError(f"vattd refused: {error.details()}") from error
