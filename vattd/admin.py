"""The operator's edge: everything about this vattd at one instant."""

from __future__ import annotations

import os
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd import __version__
from vattd.driver_thread import DriverThread, Urgency
from vattd.pool import Pool
from vattd.service import Context, device_message, rpc
from vattd.sessions import EngineSession, Sessions
from vattd.snapshot import SessionView, Snapshot
from vattention.vmm.driver import DeviceMemory, PhysicalDriver


@dataclass(slots=True)
class DaemonFacts:
    """What status says of the daemon itself. `state` is "serving", "shutting_down" or "device_lost"."""

    incarnation: int
    start_time_s: float
    state: str = "serving"


class AdminService(vatt_pb2_grpc.AdminServiceServicer):
    """What operators see."""

    def __init__(
        self, facts: DaemonFacts, sessions: Sessions, pool: Pool, driver: PhysicalDriver, thread: DriverThread
    ) -> None:
        self._facts, self._sessions, self._pool, self._driver, self._thread = facts, sessions, pool, driver, thread

    @rpc
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        memory = await self._thread.run(Urgency.REQUEST, self._driver.memory)
        snapshot = self._pool.ledger.snapshot()
        page = snapshot.page_size_bytes
        views = {view.session_id: view for view in snapshot.sessions}
        return pb.GetStatusResponse(
            daemon=pb.Daemon(
                version=__version__,
                incarnation=self._facts.incarnation,
                pid=os.getpid(),
                start_time=_timestamp(self._facts.start_time_s),
                state=self._facts.state,
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
                    mapped_bytes=tenant.mapped_pages * page,
                )
                for tenant in snapshot.tenants
            ],
            sessions=[_session_message(session, views[session.session_id], page) for session in self._sessions],
        )

    def _pool_message(self, snapshot: Snapshot) -> pb.Pool:
        page = snapshot.page_size_bytes
        return pb.Pool(
            page_size_bytes=page,
            min_bytes=self._pool.limits.min_bytes,
            max_bytes=snapshot.max_pages * page,
            pages_by_state=[
                pb.PagesInState(state=state.value, page_count=count) for state, count in snapshot.pages_by_state.items()
            ],
            peak_leased_bytes=snapshot.peak_leased_pages * page,
            peak_mapped_bytes=snapshot.peak_mapped_pages * page,
            waiting_pages=self._pool.waiting_pages,
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
        mapped_bytes=view.mapped_pages * page_size_bytes,
        attach_time=_timestamp(session.attach_time_s),
    )
