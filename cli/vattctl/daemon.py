"""The admin side of the vattds of this machine, as vattctl calls it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click
import grpc

from vatt.command_line import named_device
from vatt.completion import complete_running
from vatt.errors import DaemonUnreachable, VattError
from vatt.protocol import MAX_MESSAGE_BYTES
from vatt.sockets import Sockets, find_daemons, find_only_daemon, no_daemon, search_dirs, start_command
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattention.vmm import device_uuid
from vattention.wire_errors import from_rpc

ANSWER_WITHIN_S = 5.0
# To give a large pool back takes the driver a while.
SHRINK_WITHIN_S = 600.0
# gRPC metadata for the audit log: who types what, by our word.
CALLER_KEY = "vatt-caller"

Request = TypeVar("Request")
Response = TypeVar("Response")

socket_dir_option = click.option(
    "--socket-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where vattd's sockets are.  [default: VATTD_SOCKET_DIR, else the user's and the system's run directories]",
)
gpu_option = click.option(
    "--gpu",
    "device",
    metavar="N|UUID|host",
    help="Which vattd, where several run.",
    shell_complete=complete_running,
)
only_gpu_option = click.option(
    "--gpu", "device", metavar="N|UUID|host", help="Only this one.  [default: all]", shell_complete=complete_running
)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A daemon that did not answer, and why."""

    sockets: Sockets
    error: VattError


@dataclass(frozen=True, slots=True)
class Answers:
    """The status of every vattd that answers, and who does not. `silence` is why, if none does.

    `page_maps` are those of the statuses, if they were asked for.
    """

    statuses: Sequence[pb.GetStatusResponse]
    unreachable: Sequence[Unreachable]
    silence: VattError | None
    page_maps: Sequence[pb.GetPageMapResponse] = ()

    def check(self) -> None:
        """Raises why none answers: DaemonUnreachable, or VattError if one is there and not for us."""
        if self.silence is not None:
            raise self.silence


class Admin:
    """One vattd, as an operator calls it; a context manager. `verb` is what was typed, for the audit log.

    Every call raises what vattd refused it with; DaemonUnreachable, with what to type, if there was no answer.
    """

    def __init__(self, sockets: Sockets, verb: str) -> None:
        if not os.access(sockets.admin, os.R_OK | os.W_OK) and sockets.admin.exists():
            raise VattError(f"{sockets.admin} is open to its owner only: run vattctl as the user that runs vattd")
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self.sockets = sockets
        self._channel = grpc.insecure_channel(f"unix:{sockets.admin}", options=options)
        self._stub = vatt_pb2_grpc.AdminServiceStub(self._channel)
        self._metadata = ((CALLER_KEY, _caller(verb)),)
        self._events: Any = None  # the stream that is read
        self._events_ended = False

    def close(self) -> None:
        """What is under way raises at once."""
        self._channel.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self, within_s: float = ANSWER_WITHIN_S) -> pb.GetStatusResponse:
        return self._call(self._stub.GetStatus, pb.GetStatusRequest(), within_s)

    def page_map(self, cell_count: int) -> pb.GetPageMapResponse:
        """Without cells where vattd is older than page maps."""
        try:
            return self._call(self._stub.GetPageMap, pb.GetPageMapRequest(cell_count=cell_count))
        except VattError as error:
            if isinstance(error.__cause__, grpc.Call) and error.__cause__.code() is grpc.StatusCode.UNIMPLEMENTED:
                return pb.GetPageMapResponse()
            raise

    def reserve(self, request: pb.ReserveRequest) -> pb.Tenant:
        """What the tenant has now."""
        return self._call(self._stub.Reserve, request).tenant

    def unreserve(self, tenant: str) -> None:
        self._call(self._stub.Unreserve, pb.UnreserveRequest(tenant=tenant))

    def evict(self, session_id: str, *, kill: bool) -> int:
        """Bytes that the session leases now."""
        return self._call(self._stub.Evict, pb.EvictRequest(session_id=session_id, kill=kill)).leased_bytes

    def drain(self, *, resume: bool) -> int:
        """Bytes that are leased now."""
        return self._call(self._stub.Drain, pb.DrainRequest(resume=resume)).leased_bytes

    def shrink(self, *, ask_sessions: bool) -> int:
        """Bytes that went back to the device."""
        request = pb.ShrinkRequest(ask_sessions=ask_sessions)
        return self._call(self._stub.Shrink, request, SHRINK_WITHIN_S).freed_bytes

    def events(self, *, after: int = 0, min_lease_bytes: int = 0, follow: bool = False) -> Iterator[pb.Event]:
        """What is kept of the past after that event; with `follow` also what comes, until `end_events`, or until vattd
        ends: then raises DaemonUnreachable."""
        request = pb.WatchEventsRequest(after=after, min_lease_bytes=min_lease_bytes, follow=follow)
        within_s = None if follow else ANSWER_WITHIN_S
        self._events = self._stub.WatchEvents(request, timeout=within_s, metadata=self._metadata)
        if self._events_ended:
            self._events.cancel()
        try:
            yield from self._events
        except grpc.RpcError as error:
            if self._events_ended:
                return
            raise self._raised(error, ANSWER_WITHIN_S) from error
        if follow:
            raise DaemonUnreachable(f"vattd at {self.sockets.admin} has stopped: the same command follows the next one")

    def end_events(self) -> None:
        """Whoever reads them has read the last. For a signal handler too."""
        self._events_ended = True
        if self._events is not None:
            self._events.cancel()

    def _call(self, method: Callable[..., Response], request: Any, within_s: float = ANSWER_WITHIN_S) -> Response:
        try:
            return method(request, timeout=within_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._raised(error, within_s) from error

    def _raised(self, error: grpc.RpcError, within_s: float) -> VattError:
        raised = from_rpc(error)
        return _unreachable(self.sockets, error, within_s) if isinstance(raised, DaemonUnreachable) else raised


def find(device: str | None, socket_dir: Path | None) -> Sockets:
    """The one vattd to change something at.

    Raises DaemonUnreachable with the command to type; InvalidRequest if several run and none is named.
    """
    return find_only_daemon(_directories(socket_dir), _name_of(device))


def find_all(device: str | None, socket_dir: Path | None) -> list[Sockets]:
    """Every vattd of this machine, or every one for the device, whether it answers or not."""
    return find_daemons(_directories(socket_dir), _name_of(device))


def ask_all(
    device: str | None,
    socket_dir: Path | None,
    verb: str,
    *,
    within_s: float = ANSWER_WITHIN_S,
    cell_count: int = 0,
) -> Answers:
    """The status of every vattd of this machine, or of every one for the device, all asked at one time.

    With a page map of so many cells, if any.
    """
    directories, device = _directories(socket_dir), _name_of(device)
    found = find_daemons(directories, device)

    def ask(sockets: Sockets) -> tuple[pb.GetStatusResponse, pb.GetPageMapResponse] | Unreachable:
        try:
            with Admin(sockets, verb) as admin:
                return admin.status(within_s), admin.page_map(cell_count) if cell_count else pb.GetPageMapResponse()
        except VattError as error:
            return Unreachable(sockets, error)

    with ThreadPoolExecutor(max(1, len(found))) as threads:
        answers = list(threads.map(ask, found))
    pairs = [answer for answer in answers if not isinstance(answer, Unreachable)]
    statuses, page_maps = [status for status, _ in pairs], [page_map for _, page_map in pairs]
    unreachable = [answer for answer in answers if isinstance(answer, Unreachable)]
    silence: VattError | None = None
    if not found:
        silence = no_daemon(directories, device)
    elif not statuses:
        gone = all(isinstance(one.error, DaemonUnreachable) for one in unreachable)
        silence = (DaemonUnreachable if gone else VattError)("; ".join(str(one.error) for one in unreachable))
    return Answers(statuses, unreachable, silence, page_maps)


def _name_of(device: str | None) -> str | None:
    return None if device is None else named_device(device, device_uuid)


def _directories(socket_dir: Path | None) -> list[Path]:
    return [socket_dir] if socket_dir is not None else search_dirs(os.environ)


def _caller(verb: str) -> str:
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "somebody"
    return f"{name} (uid {uid}) vattctl {verb}".encode("ascii", "backslashreplace").decode()


def _unreachable(sockets: Sockets, error: grpc.RpcError, within_s: float) -> DaemonUnreachable:
    start = start_command(sockets)
    stop = start.replace("start", "stop", 1)
    if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DaemonUnreachable(
            f"vattd does not answer within {within_s:g} s at {sockets.admin}: "
            f"try again (that is safe), or end it with `{stop}`"
        )
    return DaemonUnreachable(f"no vattd answers at {sockets.admin}: start one with `{start}`")
