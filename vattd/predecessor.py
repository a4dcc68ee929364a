"""The vattd that had the device before this one, and may have it yet."""

from __future__ import annotations

import logging
import select
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress

from vatt.errors import DaemonUnreachable, InvalidRequest, VattError
from vatt.sizes import format_size
from vatt.sockets import Sockets
from vattd.journal import Entry, JournalFacts, SessionFacts, read_journal
from vattd.peer import is_stopped, peer_of

log = logging.getLogger(__name__)

STOP_WITHIN_S = 10.0


def pages_in_use(entries: Iterable[Entry]) -> int:
    """By a journal's word, how many pages a vattd that comes after it has to count at first."""
    pages = {True: 0, False: 0}
    for entry in entries:
        pages[isinstance(entry.facts, SessionFacts)] += entry.page_count
    return max(pages.values())  # a slab's pages are lent, or idle


def replace_running(sockets: Sockets, facts: JournalFacts, max_bytes: int) -> None:
    """End the vattd that runs here, if one does and this one can go on with what it has lent.

    Raises InvalidRequest, and it runs on.
    """
    in_use_bytes = pages_in_use(read_journal(sockets.journal, facts)) * facts.page_size_bytes
    if in_use_bytes > max_bytes:
        raise InvalidRequest(
            f"the vattd that runs has {format_size(in_use_bytes)} in use, and this one is to have at most "
            f"{format_size(max_bytes)}: choose a larger --pool-max, or `vattctl shrink` first"
        )
    try:
        pid = end_running(sockets)
    except DaemonUnreachable:
        log.info("no vattd runs here that could be replaced")
    else:
        log.info("the vattd that ran here (pid %d) has ended; its engines keep their pages", pid)


def end_running(sockets: Sockets) -> int:
    """SIGTERM to the process that listens, as the kernel names it, and wait for its end. Returns its pid.

    Raises DaemonUnreachable if there is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(STOP_WITHIN_S)
        try:
            connection.connect(str(sockets.handles))
        except OSError as error:
            raise DaemonUnreachable(
                f"no vattd answers at {sockets.handles} ({error}): it is stopped already"
            ) from error
        peer = peer_of(connection)
    try:
        if is_stopped(peer.pid):  # it would end when it goes on, and nobody would wait for that
            raise VattError(f"vattd (pid {peer.pid}) is stopped: `kill -CONT {peer.pid}` first, or `kill -9` ends it")
        with suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(peer.pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(peer.pidfd, select.POLLIN)
        if not poll.poll(STOP_WITHIN_S * 1000):
            raise VattError(
                f"vattd (pid {peer.pid}) has not ended within {STOP_WITHIN_S:.0f} s: see its log; `kill -9 {peer.pid}` "
                "does, and engines keep what they hold"
            )
    except PermissionError as error:
        raise VattError(f"vattd (pid {peer.pid}) is another user's: `sudo vattd stop` ends it") from error
    finally:
        peer.close()
    return peer.pid
