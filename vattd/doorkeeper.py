"""What may come in by our sockets: no descriptors where none are asked for, and so many connections of one user.

gRPC accepts whoever comes and does not say who that is, so its sockets are looked for among the process's descriptors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

# More than a user's sessions need. Each is a descriptor of ours, of which there are so many and no more.
MAX_CONNECTIONS_PER_USER = 2048
LOOK_EVERY_S = 1.0
SO_PASSRIGHTS = 83  # asm-generic/socket.h; Python has no name for it yet
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def pass_descriptors(connection: socket.socket, allowed: bool) -> bool:
    """May processes send descriptors over this socket, and those that it accepts? Who may not gets EPERM.

    False: the kernel cannot be told.
    """
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, int(allowed))
    except OSError:
        return False
    return True


def refuse_descriptors_at(path: Path) -> bool:
    """As `pass_descriptors`, for the socket that gRPC has bound there."""
    refused = False
    for found in sockets_at(path):
        refused = pass_descriptors(found, False)
    return refused


def sockets_at(path: Path) -> Iterator[socket.socket]:
    """Copies of this process's sockets that are bound there, or were accepted there; each is closed after its turn."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it has been closed
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with _copy_of(int(name)) as found:
                    if found.family == socket.AF_UNIX and found.getsockname() == str(path):
                        yield found


def _copy_of(fd: int) -> socket.socket:
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:  # by now it is something else's
        os.close(copy)
        raise


def most_connections() -> int:
    """Of one user: a part of the descriptors that this process may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS_PER_USER, limit // 4)


def end_surplus(path: Path, most: int) -> int:
    """End the connections there that a user has beyond so many. Returns how many."""
    counts: defaultdict[int, int] = defaultdict(int)
    ended = 0
    for found in sockets_at(path):
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            uid = _CREDENTIALS.unpack(found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
            counts[uid] += 1
            if counts[uid] > most:
                found.shutdown(socket.SHUT_RDWR)
                ended += 1
    return ended


async def keep_door(path: Path) -> None:
    """See to it until cancelled."""
    most = most_connections()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            ended = await asyncio.to_thread(_look, path, most)
        except OSError as error:  # no descriptor is left for looking
            log.warning("cannot look for connections that are too many: %s", error)
        else:
            if ended:
                log.warning("%d connections to %s were ended, those of a user beyond %d", ended, path, most)


def _look(path: Path, most: int) -> int:
    return end_surplus(path, most) if len(os.listdir("/proc/self/fd")) > most else 0
