"""An engine process for test_two_processes.py: imports the pages it is sent, reads them, writes them."""

from __future__ import annotations

import os
import socket
import sys

from tests.vattention.vmm.rig import open_bytes, pattern
from vatt.pages import Extent
from vattention.vmm import HandleKind, Placement, open_mapping

MAX_FDS = 16


def main(backend: str, uuid: str, page: int, extent: Extent, vattd: socket.socket) -> None:
    mapping = open_mapping(backend, uuid, page)
    memory = open_bytes(backend, mapping.device.ordinal)
    _, fds, _, _ = socket.recv_fds(vattd, 64, MAX_FDS)
    placement = (
        Placement(HandleKind.SLAB_FD, page, extent.index * page)
        if backend == "host"
        else Placement(HandleKind.POSIX_FD, page, 0)
    )
    mapping.import_pages(extent, placement, fds)
    for fd in fds:
        os.close(fd)
    address = mapping.reserve(extent.page_count * page)
    mapping.map(address, [extent])
    places = range(address, address + extent.page_count * page, page)
    vattd.send(b"mapped")
    vattd.recv(64)
    seen = [
        str(page_id)
        for page_id, place in zip(extent.page_ids, places, strict=True)
        if memory.read(place, page) == pattern(page_id, page)
    ]
    vattd.send(" ".join(["pages", *seen]).encode())
    rotated = [extent.page_ids[-1], *extent.page_ids[:-1]]
    for page_id, place in zip(rotated, places, strict=True):
        memory.write(place, pattern(page_id, page))
    vattd.send(b"written")
    vattd.recv(64)  # until vattd closes
    memory.close()
    mapping.close()


if __name__ == "__main__":
    backend, uuid, page, first, page_count, fd = sys.argv[1:]
    main(backend, uuid, int(page), Extent(int(first), int(page_count)), socket.socket(fileno=int(fd)))
