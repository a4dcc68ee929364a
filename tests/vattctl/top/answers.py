"""Answers of a vattd, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.text import Text

from vatt.v1 import vatt_pb2 as pb
from vattctl.top.history import History
from vattctl.top.reading import Reading

PAGE = 1 << 16
POOL_PAGES = 4096
NOW_S = 1_800_000_000.0


def tenant(name: str, pages: int = 0, **fields: Any) -> pb.Tenant:
    return pb.Tenant(name=name, leased_bytes=pages * PAGE, **fields)


def session(session_id: str, owner: str, pages: int = 0, **fields: Any) -> pb.Session:
    made = pb.Session(session_id=session_id, tenant=owner, state="attached", leased_bytes=pages * PAGE, **fields)
    made.attach_time.FromSeconds(int(NOW_S) - 300)
    return made


def status(
    tenants: Sequence[pb.Tenant] = (), sessions: Sequence[pb.Session] = (), *, incarnation: int = 1, **pool: Any
) -> pb.GetStatusResponse:
    """Of a pool whose other pages are unbacked, if nothing is said of them."""
    leased = sum(one.leased_bytes for one in tenants) // PAGE
    states = pool.pop("pages", {"unbacked": POOL_PAGES - leased})
    daemon = pb.Daemon(version="0.1.0", pid=4242, incarnation=incarnation, state="serving")
    daemon.start_time.FromSeconds(int(NOW_S) - 3600)
    return pb.GetStatusResponse(
        daemon=daemon,
        device=pb.Device(backend="host", uuid="host", name="host memory"),
        memory=pb.DeviceMemory(total_bytes=16 << 30, free_bytes=9 << 30, pages_bytes=leased * PAGE),
        pool=pb.Pool(
            page_size_bytes=PAGE,
            max_bytes=POOL_PAGES * PAGE,
            pages_by_state=[
                pb.PagesInState(state=state, page_count=count) for state, count in {"leased": leased, **states}.items()
            ],
            **pool,
        ),
        tenants=tenants,
        sessions=sessions,
    )


def page_map(cells: Sequence[tuple[str, int]], tenants: Sequence[str] = ()) -> pb.GetPageMapResponse:
    """A page a cell; of a state, and of the tenant of that number."""
    made = [pb.PageCell(state=state, tenant=number, page_count=1, total_pages=1) for state, number in cells]
    return pb.GetPageMapResponse(pages_per_cell=1, tenants=tenants, cells=made)


def reading(at_s: float, answer: pb.GetStatusResponse, cells: pb.GetPageMapResponse | None = None) -> Reading:
    return Reading(at_s, answer, cells if cells is not None else pb.GetPageMapResponse())


def history(*readings: Reading) -> History:
    """Asked every second."""
    made = History(1.0)
    for one in readings:
        made.add(one)
    return made


def crowd(tenants: int, sessions: int) -> Reading:
    """With names and figures as long as they get."""
    name = "t" * 58 + "{:05}"
    long = [
        tenant(
            name.format(number),
            20 if tenants else 0,
            mapped_bytes=1022 << 40,
            token_bytes=1021 << 40,
            session_count=4095,
            guarantee=pb.Guarantee(min_bytes=1023 << 40, max_bytes=1023 << 40, weight=1000),
            promise=pb.Promise(state=pb.Promise.STATE_PENDING),
        )
        for number in range(tenants)
    ]
    made = [
        session(
            f"4194303-{number}",
            name.format(number % max(1, tenants)),
            number,
            mapped_bytes=1022 << 40,
            asked_back_bytes=1023 << 40,
            client_name="c" * 256,
        )
        for number in range(sessions)
    ]
    cells = [("leased", number % tenants + 1) if tenants else ("clean", 0) for number in range(480)]
    return reading(1.0, status(long, made), page_map(cells, [one.name for one in long]))


def printed(lines: Sequence[Text], **console: Any) -> list[str]:
    """As a terminal without colours shows them; with `color_system` and `force_terminal`, with escape codes."""
    file = StringIO()
    out = Console(file=file, width=10_000, highlight=False, **console)
    for line in lines:
        out.print(line)
    return [line.rstrip() for line in file.getvalue().splitlines()]
