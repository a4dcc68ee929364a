"""The vattd that pages are leased from: a private one, or the user's that runs.

Private by default: its options are known and can be told, it disturbs nobody and nobody disturbs it, and no operator
has to allow anything. With --attach the figures are those of the vattd in use, its neighbours and its pool as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vatt.errors import DaemonUnreachable, InvalidRequest, VattError
from vatt.sockets import Sockets, find_daemons
from vatt.v1 import vatt_pb2 as pb
from vattctl.bench.plan import Part, Plan
from vattctl.daemon import Admin
from vattention.embedded import EmbeddedDaemon
from vattention.handle_socket import HandleConnection
from vattention.session import Session
from vattention.vmm import uses_mps

CLIENT = "vattctl bench"


@dataclass(frozen=True, slots=True)
class Lender:
    """A session at a vattd, and what that says of itself."""

    session: Session
    sockets: Sockets
    is_private: bool

    def status(self) -> pb.GetStatusResponse | None:
        """None where this user may not ask: an admin socket is its owner's."""
        try:
            with Admin(self.sockets, "bench") as admin:
                return admin.status()
        except VattError:
            return None


@contextmanager
def lender(plan: Plan) -> Iterator[Lender]:
    """Ends with everything returned; a private vattd ends too."""
    with ExitStack() as stack:
        if plan.attach is None:
            sockets = stack.enter_context(EmbeddedDaemon(plan.device, _options(plan))).sockets
        else:
            sockets = plan.attach
        directory = sockets.directory.parent
        session = stack.enter_context(
            Session.connect(plan.tenant, device=sockets.device, socket_dir=directory, client_name=CLIENT)
        )
        yield Lender(session, sockets, plan.attach is None)


def _options(plan: Plan) -> list[str]:
    """A pool of just the memory that was allowed, all of it kept, so that no page is made while leases are timed."""
    pool = str(plan.memory_bytes)
    options = ["--pool-max", pool, "--pool-min", pool, "--headroom", "0", "--page-size", str(plan.page_size_bytes)]
    if plan.backend == "cuda":
        options += ["--scrub", "never"]  # there is one tenant; and a scrub needs a context, some hundred MB
        options += ["--allow-mps"] if uses_mps(plan.backend, plan.uuid) else []
    return options


def page_size_of(sockets: Sockets, tenant: str) -> int:
    """Of the vattd that runs; only a session is told."""
    directory = sockets.directory
    with Session.connect(tenant, device=sockets.device, socket_dir=directory.parent, client_name=CLIENT) as session:
        return session.page_size_bytes


def check_alone(plan: Plan, socket_dirs: Sequence[Path]) -> None:
    """Two vattds cannot own one GPU. Raises InvalidRequest with what to type, before much time has gone by."""
    if plan.attach is not None or plan.backend != "cuda" or plan.parts <= {Part.CALLS}:
        return
    if any(_answers(sockets) for sockets in find_daemons(socket_dirs, plan.uuid)):
        raise InvalidRequest(
            "a vattd owns this GPU, and a private one cannot run beside it: add --attach to lease from that, or "
            "--only calls to leave leases and steps out"
        )


def _answers(sockets: Sockets) -> bool:
    """A vattd that was killed leaves its sockets behind; one that refuses us answers."""
    try:
        HandleConnection.connect(sockets.handles).close()
    except DaemonUnreachable:
        return False
    except VattError:
        return True
    return True
