"""Pages that another process writes: what lending is for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.vattention.vmm.rig import Rig
from vatt.pages import Extent

ROOT = Path(__file__).parents[3]


@contextmanager
def borrower(rig: Rig, extent: Extent) -> Iterator[socket.socket]:
    """An engine process that has been sent the pages' descriptors; ends when the socket does."""
    with ExitStack() as ends:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.enter_context(ours)
        ours.settimeout(30)
        device = rig.physical.device
        arguments = [device.backend, device.uuid, rig.page, extent.first, extent.page_count, theirs.fileno()]
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.vattention.vmm.borrower", *map(str, arguments)],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
        ends.callback(child.wait, 30)
        ends.callback(ours.close)
        theirs.close()
        exported = [rig.physical.export(page_id) for page_id in rig.mapping.missing_fds(extent)]
        socket.send_fds(ours, [b"pages"], exported)
        for fd in exported:
            os.close(fd)
        yield ours
        ours.close()
        assert child.wait(30) == 0


def test_what_one_process_writes_the_other_reads(rig: Rig) -> None:
    extent = Extent(2, 3)
    rig.physical.create(extent)
    with borrower(rig, extent) as engine:
        rig.share(extent)
        address = rig.mapping.reserve(3 * rig.page)
        rig.mapping.map(address, [extent])
        assert engine.recv(64) == b"mapped"
        rig.paint(address, [2, 3, 4])
        engine.send(b"painted")
        assert engine.recv(64) == b"pages 2 3 4"
        assert engine.recv(64) == b"written"
        assert rig.painted(address, [4, 2, 3])
