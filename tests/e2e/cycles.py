"""An engine in steady state: lease, map, write, read, unmap, return, over and over. It obeys lines on stdin."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from vattention import Session

CYCLES = 50
RUN_PAGES = 16


def cycle(session: Session, address: int) -> None:
    page = session.page_size_bytes
    extents = session.lease(RUN_PAGES)
    session.mapper.map(address, extents)
    for place in range(RUN_PAGES):
        ctypes.memset(address + place * page, place + 1, page)
    for place in range(RUN_PAGES):
        assert ctypes.string_at(address + place * page, page) == bytes([place + 1]) * page
    session.give_back(session.mapper.unmap(address, RUN_PAGES))


def main() -> None:
    session = Session.connect("steady", socket_dir=Path(sys.argv[1]))
    whole = int(sys.argv[2])
    session.give_back(session.lease(whole))  # now every page of the pool exists, and is this tenant's
    reserved = session.mapper.reserve(RUN_PAGES * session.page_size_bytes)
    cycle(session, reserved.address)
    for _ in range(2):
        print("ready", flush=True)
        if sys.stdin.readline() != "go\n":
            break
        for _ in range(CYCLES):
            cycle(session, reserved.address)
    session.mapper.free(reserved)
    session.close()


if __name__ == "__main__":
    main()
