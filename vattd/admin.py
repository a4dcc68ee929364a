"""The operator's edge: everything about this vattd at one instant."""

from __future__ import annotations

import enum
import os
from dataclasses import asdict, dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from vatt.usage import Usage
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd import __version__
from vattd.pool import Pool
from vattd.service import Context, device_message, rpc
from vattd.sessions import EngineSession, Sessions
from vattd.snapshot import SessionView, Snapshot
from vattention.vmm.driver import DeviceMemory, PhysicalDriver


class DaemonState(enum.Enum):
    SERVING = "serving"
    SHUTTING_DOWN = "shutting_down"
    DEVICE_LOST = "device_lost"
    BROKEN = "broken"  # a bug of ours


@dataclass(slots=True)
class DaemonFacts:
    """What status says of the daemon itself; the daemon alone writes it."""

    incarnation: int
    start_time_s: float
    state: DaemonState = DaemonState.SERVING


class AdminService(vatt_pb2_grpc.AdminServiceServicer):
    """What operators see."""

    def __init__(self, facts: DaemonFacts, sessions: Sessions, pool: Pool, driver: PhysicalDriver) -> None:
        self._facts, self._sessions, self.pool, self._driver = facts, sessions, pool, driver

    @rpc
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        memory = await self.pool.memory()
        snapshot = self.pool.ledger.snapshot()
        page = snapshot.page_size_bytes
        views = {view.session_id: view for view in snapshot.sessions}
        return pb.GetStatusResponse(
            daemon=pb.Daemon(
                version=__version__,
                incarnation=self._facts.incarnation,
                pid=os.getpid(),
                start_time=_timestamp(self._facts.start_time_s),
                state=self._facts.state.value,
            ),
            device=device_message(self._driver.device),
            memory=_memory_message(memory),
            pool=self._pool_message(snapshot),
            tenants=[
                pb.Tenant(
                    name=tenant.name,
                    owner_uid=tenant.owner_uid,
                    session_count=tenant.session_count,
                    leased_bytes=tenant.leased_pages * page,
                    **_usage_bytes(tenant.usage, page),
                )
                for tenant in snapshot.tenants
            ],
            sessions=[_session_message(session, views[session.session_id], page) for session in self._sessions],
        )

    def _pool_message(self, snapshot: Snapshot) -> pb.Pool:
        page = snapshot.page_size_bytes
        return pb.Pool(
            page_size_bytes=page,
            min_bytes=self.pool.limits.min_bytes,
            max_bytes=snapshot.max_pages * page,
            pages_by_state=[
                pb.PagesInState(state=state.value, page_count=count) for state, count in snapshot.pages_by_state.items()
            ],
            peak_leased_bytes=snapshot.peak_leased_pages * page,
            peak_mapped_bytes=snapshot.peak_mapped_pages * page,
            waiting_pages=self.pool.waiting_pages,
            created_pages_total=snapshot.created_pages_total,
            scrubbed_pages_total=snapshot.scrubbed_pages_total,
            destroyed_pages_total=snapshot.destroyed_pages_total,
        )


def _timestamp(time_s: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(time_s * 1e9))
    return timestamp


def _memory_message(memory: DeviceMemory) -> pb.DeviceMemory:
    return pb.DeviceMemory(total_bytes=memory.total_bytes, free_bytes=memory.free_bytes, pages_bytes=memory.pages_bytes)


def _session_message(session: EngineSession, view: SessionView, page_size_bytes: int) -> pb.Session:
    return pb.Session(
        session_id=session.session_id,
        tenant=session.tenant,
        pid=session.peer.pid,
        uid=session.peer.uid,
        client_name=session.client_name,
        state="fenced" if session.fenced else "attached",
        leased_bytes=view.leased_pages * page_size_bytes,
        attach_time=_timestamp(session.attach_time_s),
        **_usage_bytes(view.usage, page_size_bytes),
    )


def _usage_bytes(usage: Usage, page_size_bytes: int) -> dict[str, int]:
    """As the fields of a Tenant and of a Session."""
    fields = asdict(usage)
    return {"mapped_bytes": fields.pop("mapped_pages") * page_size_bytes, **fields}
