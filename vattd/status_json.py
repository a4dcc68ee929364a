"""What /status.json says: the messages of GetStatus, and beside them what the status page needs to draw. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vatt.plain import to_plain
from vatt.v1 import vatt_pb2 as pb
from vattd.happenings import Happening
from vattd.health import Finding, findings
from vattd.messages import event_message, timestamp
from vattd.page_map import Cell, PageMap
from vattd.snapshot import PageState
from vattd.status_instant import Instant
from vattd.timeline import Amounts, Picture, Sample, draw

# Who may use a tenant, and which user runs an engine, is for who reaches the admin socket.
_NOT_SHOWN = {"tenants": ("owner_uid", "access"), "sessions": ("uid",)}
# As many as can be told apart by colour; the others are shown as one.
MOST_TENANTS = 12
_AMOUNTS = ("leased_bytes", "mapped_bytes", "waiting_bytes")


@dataclass(frozen=True, slots=True)
class Reading:
    """One instant, but for the page map, which may be a moment older. Nothing in it changes any more, so that whoever
    waits for the event loop need not wait for the rest."""

    instant: Instant
    memory_s: float | None  # when the figures of the device's memory were new; None: there are none yet
    page_map: PageMap
    happenings: Sequence[Happening]  # the latest first
    samples: Sequence[Sample]


def render(reading: Reading) -> bytes:
    return json.dumps(as_plain(reading), separators=(",", ":")).encode()


def as_plain(reading: Reading) -> dict[str, Any]:
    instant, status = reading.instant, reading.instant.message()
    page = status.pool.page_size_bytes
    return {
        "time": timestamp(instant.wall_s).ToJsonString(),
        "health": [_finding(one) for one in findings(status, instant.wall_s)],
        "status": _status(status),
        "memory_age_s": None if reading.memory_s is None else instant.now_s - reading.memory_s,
        "page_map": _page_map(reading.page_map),
        "events": [to_plain(event_message(what, page, missed=0)) for what in reading.happenings],
        "timeline": _timeline(draw(reading.samples, instant.now_s, MOST_TENANTS)),
    }


def _finding(one: Finding) -> dict[str, Any]:
    return {"level": one.level.value, "what": one.what, "why": one.why, "commands": list(one.commands)}


def _status(status: pb.GetStatusResponse) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(status)
    for what, fields in _NOT_SHOWN.items():
        for one, field in itertools.product(plain[what], fields):
            del one[field]
    return plain


def _page_map(page_map: PageMap) -> dict[str, Any]:
    """As GetPageMapResponse; but cells that are alike and beside each other are one row: how many, and then the fields
    of each of them."""
    numbers: dict[str, int] = {"": 0}
    rows = [
        [len(list(alike)), state.value, numbers.setdefault(tenant, len(numbers)), page_count, total_pages]
        for (state, tenant, page_count, total_pages), alike in itertools.groupby(page_map.cells, _fields_of)
    ]
    return {
        "pages_per_cell": page_map.pages_per_cell,
        "tenants": list(numbers)[1:],
        "columns": ["cell_count", "state", "tenant", "page_count", "total_pages"],
        "rows": rows,
    }


def _fields_of(cell: Cell) -> tuple[PageState, str, int, int]:
    return cell.owner.state, cell.owner.tenant, cell.page_count, cell.total_pages


def _timeline(picture: Picture) -> dict[str, Any]:
    return {
        "ages_s": [round(age_s, 1) for age_s in picture.ages_s],
        "tenants": [{"name": name, **_series(amounts)} for name, amounts in picture.tenants.items()],
        "others": _series(picture.others),
        "free_bytes": list(picture.free_bytes),
    }


def _series(amounts: Iterable[Amounts]) -> dict[str, list[int]]:
    rows = list(amounts)
    return {field: [getattr(row, field) for row in rows] for field in _AMOUNTS}
