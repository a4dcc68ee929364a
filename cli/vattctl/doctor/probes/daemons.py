"""Every vattd whose sockets are found, asked as an engine asks (handle socket) and as an operator (admin socket)."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import DecodeError

from vatt.errors import InvalidRequest, VattError
from vatt.protocol import MAX_HANDLE_PACKET_BYTES
from vatt.sockets import Sockets, check_directory, find_daemons
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Admin
from vattctl.doctor.facts import UNLIMITED, Daemon, Directory, Status, Trouble
from vattctl.doctor.probes.metrics import read_metrics

WELCOME_WITHIN_S = 3.0
HANDLES_NAME = Sockets(Path("/")).handles.name
_UCRED = struct.Struct("3i")


def read_directories(paths: Sequence[Path], is_chosen: bool, root_device: int) -> list[Directory]:
    return [_directory(path, is_chosen, root_device) for path in dict.fromkeys(paths)]


def _directory(path: Path, is_chosen: bool, root_device: int) -> Directory:
    try:
        Sockets(path / "host")
        exists = path.exists()
        names = [found.name for found in path.iterdir()] if exists else []
    except InvalidRequest as error:
        return Directory(path, is_chosen, exists=True, trouble=Trouble.TOO_LONG, error=str(error))
    except OSError as error:
        return Directory(path, is_chosen, exists=True, trouble=Trouble.HIDDEN, error=str(error))
    if not exists:
        return Directory(path, is_chosen, exists=False)
    try:
        check_directory(path, "--socket-dir")
        for name in names:
            Sockets(path / name)
    except InvalidRequest as error:
        trouble = Trouble.TOO_LONG if "longer" in str(error) else Trouble.UNSAFE
        return Directory(path, is_chosen, exists=True, trouble=trouble, error=str(error))
    return Directory(path, is_chosen, exists=True, is_mounted=path.stat().st_dev != root_device)


def read_other_places(directories: Sequence[Directory], root: Path = Path("/")) -> list[Path]:
    """The kernel lists every socket that is bound to a path, of all mount namespaces that share our network."""
    known = {one.path for one in directories}
    lines = (root / "proc/net/unix").read_text(errors="replace").splitlines()[1:]
    bound = [Path(fields[7]) for fields in (line.split(maxsplit=7) for line in lines) if len(fields) == 8]
    places = {path.parent.parent for path in bound if path.name == HANDLES_NAME and path.is_absolute()}
    return sorted(places - known)


def read_daemons(directories: Sequence[Directory]) -> list[Daemon]:
    """All asked at one time: some may be silent."""
    usable = [one.path for one in directories if one.exists and one.trouble is Trouble.NONE]
    found = find_daemons(usable)
    with ThreadPoolExecutor(max(1, len(found))) as threads:
        return list(threads.map(_daemon, found))


def _daemon(sockets: Sockets) -> Daemon:
    daemon = _as_engine(sockets, Daemon(sockets.device, sockets.directory.parent))
    if not daemon.is_heard:
        return daemon
    daemon = _as_operator(sockets, daemon)
    if not daemon.pid:
        return replace(daemon, metrics_hidden=True)
    metrics, are_hidden = read_metrics(daemon.pid)
    return replace(
        daemon,
        process_start_s=_start_of(daemon.pid),
        nofile=_nofile_of(daemon.pid),
        metrics=metrics,
        metrics_hidden=are_hidden,
    )


def _as_engine(sockets: Sockets, daemon: Daemon) -> Daemon:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WELCOME_WITHIN_S)
        try:
            connection.connect(str(sockets.handles))
        except OSError as error:
            return replace(daemon, connect_error=errno.errorcode.get(error.errno or 0, str(error)))
        pid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        daemon = replace(daemon, pid=pid)
        if _stat_of(pid)[0] in ("T", "t"):
            return replace(daemon, is_stopped=True)
        try:
            welcome = pb.HandleWelcome.FromString(connection.recv(MAX_HANDLE_PACKET_BYTES))
        except (OSError, DecodeError):
            return replace(daemon, is_silent=True)
    versions = (welcome.min_protocol_version, welcome.max_protocol_version)
    return replace(daemon, refusal=welcome.error.message, wire_versions=versions)


def _as_operator(sockets: Sockets, daemon: Daemon) -> Daemon:
    try:
        with Admin(sockets, "doctor") as admin:
            answer = admin.status()
    except VattError as error:
        return replace(daemon, status_error=str(error))
    status = Status(
        version=answer.daemon.version,
        state=answer.daemon.state,
        start_s=answer.daemon.start_time.ToNanoseconds() / 1e9,
        backend=answer.device.backend,
        page_size_bytes=answer.pool.page_size_bytes,
        max_bytes=answer.pool.max_bytes,
        pages_bytes=answer.memory.pages_bytes,
        session_count=len(answer.sessions),
        shortage=answer.pool.shortage,
    )
    return replace(daemon, status=status)


def _start_of(pid: int) -> float:
    """When the process began, by the clock as it is now; 0: that cannot be seen."""
    ticks = int(_stat_of(pid)[19])
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def _stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; zeros where they cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        fields = []
    return fields if len(fields) >= 20 else ["0"] * 20


def _nofile_of(pid: int) -> int:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except OSError:  # another user's
        return 0
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft
