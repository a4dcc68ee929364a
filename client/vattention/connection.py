"""How a session is born: the handle socket's token, redeemed by Attach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from vatt import protocol
from vatt.errors import InvalidRequest, VattError, VersionUnsupported
from vatt.sockets import Sockets, find_daemon
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention import embedded, fork_guard
from vattention.attach_stream import AttachStream
from vattention.channel import open_channel
from vattention.config import ClientConfig
from vattention.farewell import detach_later
from vattention.handle_socket import HandleConnection
from vattention.tidings import Tidings
from vattention.vmm import uses_mps

ATTACH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Claims:
    """What a session holds: its pages, and descriptors of the slabs that they are in, by zone."""

    runs: Sequence[vatt_pb2.PageRun]
    slabs: Mapping[int, int]


# Holds on to what is claimed until the claim is answered.
Claiming = Callable[[], AbstractContextManager[Claims]]


def _no_claims() -> AbstractContextManager[Claims]:
    return nullcontext(Claims((), {}))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who attaches."""

    tenant: str
    client_name: str

    def __post_init__(self) -> None:
        for name in ("tenant", "client_name"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidRequest(f"{name} must be a str, not {value!r}")


class Connection:
    """Both sockets of one session. `resume` replaces what broke; the session stays the same."""

    def __init__(self, caller: Caller, sockets: Sockets) -> None:
        """Raises DaemonUnreachable, TenantDenied, VersionUnsupported, and leaves nothing open."""
        self._caller = caller
        self._sockets = sockets
        self.tidings = Tidings()
        self.on_end: Callable[[], None] = lambda: None  # called when the stream breaks
        with ExitStack() as undo:
            channel = open_channel(sockets)
            undo.callback(channel.close)
            self.stub = vatt_pb2_grpc.EngineServiceStub(channel)
            self.handles, self.stream, self.attached = self._attach(None, _no_claims)
            self._close_channel = undo.pop_all()
        fork_guard.abandon_in_child(self)

    @classmethod
    def open(
        cls,
        caller: Caller,
        config: ClientConfig,
        device: str | None,
        socket_dir: Path | None,
        page_size_bytes: int | None = None,
    ) -> Connection:
        """Connect to the daemon that the arguments and the environment choose. The page size is for one that is started
        here."""
        if socket_dir is not None or not config.embedded:
            return cls(
                caller, find_daemon([socket_dir] if socket_dir is not None else list(config.socket_dirs), device)
            )
        fork_guard.about_to_open_a_channel()
        with ExitStack() as undo:
            daemon = embedded.acquire(device, page_size_bytes)
            undo.callback(embedded.release, daemon)
            connection = cls(caller, daemon.sockets)
            daemon.connections.add(connection)
            connection._close_channel.push(undo.pop_all())
        return connection

    def resume(self, claims: Claiming) -> None:
        """Re-attach the session after its stream broke. A vattd that did not lend what the session holds asks for its
        claims; `attached` then says which it refuses."""
        self.expect_end()  # vattd ends the old stream, if it is not over yet
        try:
            handles, stream, attached = self._attach(self.attached.key, claims)
        except BaseException:
            self.stream.is_to_go_on()
            raise
        broken_handles, broken_stream = self.handles, self.stream
        self.handles, self.stream, self.attached = handles, stream, attached
        broken_stream.close()
        broken_handles.close()

    def expect_end(self) -> None:
        """The stream is about to end, and that is no news."""
        self.stream.expect_end()

    def detach_later(self) -> None:
        """Vattd could not be told that the session detaches: it is told when one answers again. Returns at once.

        The caller says by this that nothing of the session is mapped any more.
        """
        detach_later(self._sockets, self.attached.key)

    def close(self) -> None:
        """Idempotent."""
        self.stream.close()
        self.handles.close()
        self._close_channel.close()

    def abandon(self) -> None:
        """In a forked child: close its copy of the handle socket. The channel stays: gRPC's threads are gone."""
        self.handles.close()

    def _attach(
        self, resume: vatt_pb2.SessionKey | None, claims: Claiming
    ) -> tuple[HandleConnection, AttachStream, vatt_pb2.Attached]:
        with ExitStack() as undo, ExitStack() as claiming:
            handles = HandleConnection.connect(self._sockets.handles)
            undo.callback(handles.close)
            _check_versions(handles.welcome)
            request = vatt_pb2.AttachRequest(
                token=handles.welcome.token,
                tenant=self._caller.tenant,
                min_protocol_version=protocol.MIN_VERSION,
                max_protocol_version=protocol.MAX_VERSION,
                client_name=self._caller.client_name,
                resume=resume,
                uses_mps=resume is None and uses_mps(handles.welcome.device.backend, handles.welcome.device.uuid),
            )
            if resume is not None and handles.welcome.incarnation != self.attached.incarnation:
                claimed = claiming.enter_context(claims())
                if handles.welcome.awaits_slabs:
                    handles.offer(claimed.slabs)
                request.claims.extend(claimed.runs)
            stream = AttachStream(self.stub, request, self.tidings, lambda: self.on_end())
            undo.callback(stream.close)
            attached = stream.attached(ATTACH_TIMEOUT_S)
            facts = (attached.page_size_bytes, attached.max_pages_per_lease, attached.max_runs_per_message)
            if min(*facts, attached.pool_pages) < 1:
                raise VattError(f"vattd's answer to Attach makes no sense: {attached}")
            undo.pop_all()
        return handles, stream, attached


def _check_versions(welcome: vatt_pb2.HandleWelcome) -> None:
    """vattd checks it too; but a client that it cannot understand should say so itself."""
    if welcome.max_protocol_version < protocol.MIN_VERSION or welcome.min_protocol_version > protocol.MAX_VERSION:
        raise VersionUnsupported(
            f"vattd speaks versions {welcome.min_protocol_version} to {welcome.max_protocol_version} of the wire, this "
            f"library {protocol.MIN_VERSION} to {protocol.MAX_VERSION}: update the older one"
        )
