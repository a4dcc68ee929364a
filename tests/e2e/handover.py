"""An engine that takes a whole pool when it is told to, says what it finds there, leaves its mark, and gives all back.

With `--keep` it is a careless or hostile one: it returns pages by the wire and keeps them mapped, then writes on.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

from tests.raw_engine import RawEngine, close_all
from vatt.pages import Extent
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vattention import LeasePurpose, Session
from vattention.vmm import HandleKind, Placement, open_mapping

WAIT_S = 60.0
FRESH = 0xA5  # what the simulated device's new memory is full of


def look(address: int, page: int, own: int) -> str:
    """Whose bytes a page is full of."""
    data = ctypes.string_at(address, page)
    if data.count(0) == page:
        return "zeros"
    if data.count(own) == page:
        return "own"
    return "fresh" if data.count(FRESH) == page else "foreign"


def take_turns(session: Session, pool_pages: int, mark: int) -> None:
    """A turn for every line: what the pages held before they got the mark."""
    page = session.page_size_bytes
    place = session.mapper.reserve(pool_pages * page).address
    for _ in sys.stdin:
        extents = session.lease(pool_pages, purpose=LeasePurpose.ADMIT, wait_s=WAIT_S)
        session.mapper.map(place, extents)
        found = Counter(look(place + at * page, page, mark) for at in range(pool_pages))
        ctypes.memset(place, mark, pool_pages * page)
        session.give_back(session.mapper.unmap(place, pool_pages))
        print(json.dumps(found), flush=True)


def keep_on(sockets: Sockets, tenant: str, pool_pages: int, mark: int) -> None:
    """For each line: take the pool; return it, and keep it mapped; fill what is mapped; say whose bytes are in it."""
    with RawEngine(sockets, tenant) as engine:
        attached = engine.attached
        page = attached.page_size_bytes
        mapping = open_mapping(attached.device.backend, attached.device.uuid, page)
        place = mapping.reserve(pool_pages * page)
        runs: list[pb.LeasedRun] = []
        for line in sys.stdin:
            word, answer = line.strip(), ""
            if word == "take":
                runs = engine.lease(pool_pages, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=WAIT_S)
                extents = [Extent(leased.run.first_page_id, leased.run.page_count) for leased in runs]
                for leased, extent in zip(runs, extents, strict=True):
                    is_host = leased.kind == pb.HANDLE_KIND_SLAB_FD
                    kind = HandleKind.SLAB_FD if is_host else HandleKind.POSIX_FD
                    missing = mapping.missing_fds(extent)
                    fds = pull(engine, leased, missing)
                    mapping.import_pages(extent, Placement(kind, page, leased.offset_bytes), fds)
                    close_all(fds)
                mapping.map(place, extents)
            elif word == "return":
                engine.give_back(runs)
            elif word == "fill":
                ctypes.memset(place, mark, pool_pages * page)
            else:
                answer = json.dumps(Counter(look(place + at * page, page, mark) for at in range(pool_pages)))
            print(answer, flush=True)


def pull(engine: RawEngine, leased: pb.LeasedRun, page_ids: list[int]) -> list[int]:
    fds: list[int] = []
    for page_id in page_ids:
        run = pb.PageRun(first_page_id=page_id, page_count=1, generation=leased.run.generation)
        fds += engine.handles.pull([run])[1]
    return fds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-dir", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--pool-pages", type=int, required=True)
    parser.add_argument("--mark", type=int, required=True)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.keep:
        keep_on(Sockets(options.socket_dir / options.device), options.tenant, options.pool_pages, options.mark)
        return
    with Session.connect(options.tenant, socket_dir=options.socket_dir) as session:
        take_turns(session, options.pool_pages, options.mark)


if __name__ == "__main__":
    main()
