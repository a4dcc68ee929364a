"""The kernel, its limits, and the host's memory."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import resource
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from vattctl.doctor.facts import UNLIMITED, Container, Kernel, Limits, Memory
from vattention.vmm.host_memory import HostMemory

# Linux 6.5 and 6.16; not in the socket module yet.
SO_PEERPIDFD, SO_PASSRIGHTS = 77, 83
# What the kernel numbers the first pid and user namespaces (linux/proc_ns.h).
FIRST_PIDS, FIRST_USERS = 0xEFFFFFFC, 0xEFFFFFFD
MARKS = {".dockerenv": "docker", "run/.containerenv": "podman"}


def read_kernel() -> Kernel:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        peer_pidfd = _error_of(lambda: os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)))
        pass_rights = _error_of(lambda: ours.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0))
    return Kernel(
        release=platform.release(),
        has_peer_pidfd=not peer_pidfd,
        refuses_descriptors=not pass_rights,
        pidfd_error=_error_of(lambda: os.close(os.pidfd_open(os.getpid()))),
        memfd_error=_error_of(_seal_memory),
        hides_processes=os.geteuid() != 0 and not os.access("/proc/1/stat", os.R_OK),
    )


def _error_of(call: Callable[[], object]) -> str:
    """The name of its errno; empty: it worked."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def _seal_memory() -> None:
    fd = os.memfd_create("vattctl-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    finally:
        os.close(fd)


def read_container(environ: Mapping[str, str], root: Path = Path("/")) -> Container:
    kind = next((name for mark, name in MARKS.items() if (root / mark).exists()), "")
    if "KUBERNETES_SERVICE_HOST" in environ:
        kind = "kubernetes"
    namespaces = root / "proc/self/ns"
    return Container(
        kind or environ.get("container", ""),
        own_pids=_namespace(namespaces / "pid") != FIRST_PIDS,
        own_users=_namespace(namespaces / "user") != FIRST_USERS,
    )


def _namespace(link: Path) -> int:
    """`pid:[4026531836]`."""
    return int(os.readlink(link).partition("[")[2].rstrip("]"))


def read_limits(root: Path = Path("/")) -> Limits:
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    vm, meminfo = root / "proc/sys/vm", _meminfo(root)
    return Limits(
        nofile_soft=_limit(nofile[0]),
        nofile_hard=_limit(nofile[1]),
        memlock_bytes=_limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        address_space_bytes=_limit(resource.getrlimit(resource.RLIMIT_AS)[0]),
        file_bytes=_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        max_map_count=int((vm / "max_map_count").read_text()),
        overcommit_mode=int((vm / "overcommit_memory").read_text()),
        commit_left_bytes=meminfo["CommitLimit"] - meminfo["Committed_AS"],
    )


def _limit(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value


def read_memory(root: Path = Path("/")) -> Memory:
    host, meminfo = HostMemory(root), _meminfo(root)
    room = host.read()
    huge = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    shm = os.statvfs(root / "dev/shm") if (root / "dev/shm").is_dir() else None
    return Memory(
        machine_bytes=meminfo["MemTotal"],
        total_bytes=room.total_bytes,
        available_bytes=room.available_bytes,
        headroom_bytes=host.headroom_of(room.total_bytes),
        limit=room.limit,
        swap_bytes=meminfo.get("SwapTotal", 0),
        swap_used_bytes=meminfo.get("SwapTotal", 0) - meminfo.get("SwapFree", 0),
        huge_pages=_number(huge / "nr_hugepages"),
        huge_pages_free=_number(huge / "free_hugepages"),
        shm_bytes=shm.f_blocks * shm.f_frsize if shm is not None else 0,
    )


def _meminfo(root: Path) -> dict[str, int]:
    """In bytes; counts of pages, which have no unit, stay counts."""
    found = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        number, *unit = value.split()
        found[name] = int(number) << (10 if unit else 0)
    return found


def _number(file: Path) -> int:
    return int(file.read_text()) if file.exists() else 0
