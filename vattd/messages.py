"""Our values as the wire's messages, and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from vatt.usage import Usage
from vatt.v1 import vatt_pb2 as pb
from vattd.guarantee import Access, MinMode
from vattd.happenings import Happening
from vattd.page_map import PageMap
from vattd.pressure import PromiseState, PromiseView
from vattd.reclaim import ReclaimCounts, Request
from vattd.reservation import Reservation
from vattd.share_out import Depth
from vattention.vmm.driver import Device, DeviceMemory

_MODES = {MinMode.SOFT: pb.MIN_MODE_SOFT, MinMode.HARD: pb.MIN_MODE_HARD}
_DEPTHS = {Depth.IDLE: pb.RECLAIM_DEPTH_IDLE, Depth.RUNNING: pb.RECLAIM_DEPTH_RUNNING}
_PROMISES = {
    PromiseState.HELD: pb.Promise.STATE_HELD,
    PromiseState.PENDING: pb.Promise.STATE_PENDING,
    PromiseState.BROKEN: pb.Promise.STATE_BROKEN,
}


def timestamp(time_s: float) -> Timestamp:
    message = Timestamp()
    message.FromNanoseconds(int(time_s * 1e9))
    return message


def duration(length_s: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(length_s * 1e9))
    return message


def seconds(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9


def mode_of(mode: pb.MinMode.ValueType) -> MinMode | None:
    """None: unspecified, or a mode that this vattd does not know."""
    return next((ours for ours, theirs in _MODES.items() if theirs == mode), None)


def device_message(device: Device) -> pb.Device:
    return pb.Device(backend=device.backend, uuid=device.uuid, name=device.name)


def memory_message(memory: DeviceMemory) -> pb.DeviceMemory:
    return pb.DeviceMemory(total_bytes=memory.total_bytes, free_bytes=memory.free_bytes, pages_bytes=memory.pages_bytes)


def put_usage(message: pb.Tenant | pb.Session, usage: Usage, page_size_bytes: int) -> None:
    """Into the fields that a Tenant and a Session have for it."""
    message.mapped_bytes = usage.mapped_pages * page_size_bytes
    message.token_bytes = usage.token_bytes
    message.static_reservation_bytes = usage.static_reservation_bytes
    message.paged16_bytes = usage.paged16_bytes
    message.paged256_bytes = usage.paged256_bytes


def guarantee_message(reservation: Reservation | None, revision: int) -> pb.Guarantee:
    """Of a tenant for which nothing was set, what holds for anybody."""
    if reservation is None:
        return pb.Guarantee(weight=1, min_mode=pb.MIN_MODE_SOFT, revision=revision)
    return pb.Guarantee(
        min_bytes=reservation.min_bytes,
        max_bytes=reservation.max_bytes,
        weight=reservation.weight,
        min_mode=_MODES[reservation.mode],
        revision=reservation.revision,
    )


def access_message(access: Access) -> pb.AccessList:
    return pb.AccessList(uids=sorted(access.uids), gids=sorted(access.gids))


def reclaim_message(request: Request) -> pb.Reclaim:
    return pb.Reclaim(
        reclaim_id=request.reclaim_id,
        page_count=request.page_count,
        depth=_DEPTHS[request.depth],
        within=duration(request.within_s),
        message=request.reason.value,
    )


def promise_message(view: PromiseView, page_size_bytes: int, wall_s: float, now_s: float) -> pb.Promise:
    """`wall_s` and `now_s` are the same moment on the wall clock and on the event loop's."""
    message = pb.Promise(
        state=_PROMISES[view.state],
        missing_bytes=view.missing_pages * page_size_bytes,
        lent_bytes=view.lent_pages * page_size_bytes,
        broken_by=view.broken_by,
    )
    if view.deadline_s is not None:
        message.deadline.CopyFrom(timestamp(wall_s + view.deadline_s - now_s))
    return message


def page_map_message(page_map: PageMap) -> pb.GetPageMapResponse:
    numbers: dict[str, int] = {"": 0}
    cells = [
        pb.PageCell(
            state=cell.owner.state.value,
            tenant=numbers.setdefault(cell.owner.tenant, len(numbers)),
            page_count=cell.page_count,
            total_pages=cell.total_pages,
        )
        for cell in page_map.cells
    ]
    return pb.GetPageMapResponse(pages_per_cell=page_map.pages_per_cell, tenants=list(numbers)[1:], cells=cells)


def event_message(what: Happening, page_size_bytes: int, missed: int) -> pb.Event:
    return pb.Event(
        sequence=what.sequence,
        time=timestamp(what.time_s),
        kind=what.kind.value,
        tenant=what.tenant,
        session_id=what.session_id,
        bytes=what.page_count * page_size_bytes,
        reason=what.reason,
        waited=None if what.waited_s is None else duration(what.waited_s),
        message=what.message,
        missed=missed,
    )


def reclaim_counts_message(counts: ReclaimCounts) -> pb.ReclaimCounts:
    return pb.ReclaimCounts(
        asked_pages_total=counts.asked_pages,
        asked_total=counts.asked,
        answered_total=counts.answered,
        ignored_total=counts.ignored,
        killed_total=counts.killed,
    )
