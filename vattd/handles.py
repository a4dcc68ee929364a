"""The handle socket: where a session is born, and where pages' file descriptors leave.

Every connection is non-blocking and has one message under way: until its answer is sent, nothing more is read from it.
And nothing is done for an answer before the last one has been read (see outbox.py). So a client that does not read
costs the others nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from vatt.errors import InvalidRequest, VattError
from vatt.pages import Extent
from vatt.protocol import MAX_FDS_PER_PACKET, MAX_HANDLE_PACKET_BYTES
from vatt.v1 import vatt_pb2 as pb
from vattd.doorkeeper import pass_descriptors
from vattd.outbox import Outboxes
from vattd.page_run import PageRun
from vattd.peer import Peer
from vattd.rates import RUNS_A_MESSAGE

log = logging.getLogger(__name__)

# A process that has connected and does not attach for so long is let go.
ATTACH_WITHIN_S = 60.0


class PullSource(Protocol):
    """The attached session behind a connection, as far as pulls need it."""

    async def pull(self, runs: list[PageRun]) -> list[int]: ...


class SlabTaker(Protocol):
    """Who misses slabs of an earlier vattd's."""

    def expects(self, pid: int) -> bool:
        """May this process bring some?"""

    def wants(self, zone: int, fd: int) -> bool:
        """Is this such a slab?"""


class NoSlabs:
    """None is missed."""

    def expects(self, pid: int) -> bool:
        return False

    def wants(self, zone: int, fd: int) -> bool:
        return False


def parse_run(run: pb.PageRun) -> PageRun:
    """Raises InvalidRequest."""
    try:
        return PageRun(Extent(run.first_page_id, run.page_count), run.generation)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


class HandleConnection:
    """One process's connection. It owns the peer's pidfd until a session takes it over by setting `source`.

    `delay_s` says how long the message after one so heavy has to wait.
    """

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        on_close: Callable[[HandleConnection], None],
        delay_s: Callable[[float], float],
        outboxes: Outboxes,
    ) -> None:
        self.peer = peer
        self._delay_s, self._closer = delay_s, outboxes.closer
        self.token = secrets.token_bytes(16)
        self.source: PullSource | None = None
        self._socket, self._on_close = connection, on_close
        self._loop = asyncio.get_running_loop()
        self._answering: asyncio.Task[int] | None = None
        self._offers: dict[int, int] = {}  # slabs of an earlier vattd's that the process brought: descriptors by zone
        self.slabs: SlabTaker = NoSlabs()
        self.is_closed = False
        self._outbox = outboxes.open(connection, peer.uid)
        self._too_late = self._loop.call_later(ATTACH_WITHIN_S, self.close)

    def in_turn(self, weight: float, then: Callable[[], None]) -> None:
        """Count a message so heavy, and go on when it is the user's turn again, if the connection is open then."""

        def go_on() -> None:
            if not self.is_closed:
                then()

        delay_s = self._delay_s(weight)
        if delay_s:
            self._loop.call_later(delay_s, go_on)
        else:
            go_on()

    def welcome(self, facts: pb.HandleWelcome) -> None:
        """Tell the process `facts` and the connection's token."""
        welcome = pb.HandleWelcome(token=self.token, awaits_slabs=self._may_bring)
        welcome.MergeFrom(facts)
        if welcome.awaits_slabs:
            pass_descriptors(self._socket, True)
        self._outbox.send(welcome.SerializeToString(), [])
        self._read_on()

    def attach(self, source: PullSource) -> None:
        """From now on `source` answers pulls, and the token is spent. The caller owns the pidfd."""
        self._too_late.cancel()
        self.source = source

    def take_offers(self) -> dict[int, int]:
        """The slabs that were brought, the caller's from now on."""
        offers, self._offers = self._offers, {}
        return offers

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        for fd in self.take_offers().values():
            os.close(fd)
        self._too_late.cancel()
        if self._answering is not None:
            self._answering.cancel()
        self._loop.remove_reader(self._socket)
        self._outbox.close()
        if self.source is None:
            self.peer.close()
        self._on_close(self)

    def _read(self) -> None:
        brought: list[int] = []
        try:
            packet, brought = self._receive()
            if not packet:
                self.close()
                return
            request = self._understand(packet, brought)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        finally:
            # Here and not in the task, which may be cancelled before it begins.
            if brought:
                self._closer.close(self.peer.uid, brought)
        self._loop.remove_reader(self._socket)
        self._answering = self._loop.create_task(self._answer(*request))
        self._answering.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[int]) -> None:
        error = None if task.cancelled() else task.exception()
        if self.is_closed:
            return
        if error is not None or task.cancelled():
            log.warning("the handle connection of pid %d broke: %s", self.peer.pid, error)
            self.close()
            return
        self._answering = None
        self.in_turn(1 + task.result() / RUNS_A_MESSAGE, self._read_on)

    def _read_on(self) -> None:
        self._loop.add_reader(self._socket, self._read)

    def _receive(self) -> tuple[bytes, list[int]]:
        """Raises OSError where descriptors come that cannot be missed: read without room for them, they would be closed
        here and now, which may take long (see Closer)."""
        if not self._may_bring:
            if self._socket.recvmsg(1, 0, socket.MSG_PEEK)[2] & socket.MSG_CTRUNC:
                raise ConnectionAbortedError("descriptors that nobody asked for")
            return self._socket.recv(MAX_HANDLE_PACKET_BYTES + 1), []
        packet, fds, _, _ = socket.recv_fds(
            self._socket, MAX_HANDLE_PACKET_BYTES + 1, MAX_FDS_PER_PACKET, socket.MSG_CMSG_CLOEXEC
        )
        return packet, fds

    @property
    def _may_bring(self) -> bool:
        """Not while what came before is not even closed: it may be of those that take long."""
        if self._closer.count_of(self.peer.uid) > MAX_FDS_PER_PACKET:
            return False
        return self.source is None and self.slabs.expects(self.peer.pid)

    def _understand(self, packet: bytes, brought: Sequence[int]) -> tuple[pb.HandlePull, VattError | None]:
        """What is asked, and what is wrong with it. Slabs that are brought with it are taken in."""
        pull = pb.HandlePull()
        try:
            self._parse(pull, packet)
            if pull.offered_zones:
                self._take_in(pull.offered_zones, brought)
        except VattError as error:
            return pull, error
        return pull, None

    async def _answer(self, pull: pb.HandlePull, refusal: VattError | None) -> int:
        """How many descriptors it took."""
        await self._outbox.until_read()
        fds: list[int] = []
        try:
            try:
                if refusal is not None:
                    raise refusal
                if not pull.offered_zones:
                    fds = await self._pull(pull)
                delivery = pb.HandleDelivery(pull_id=pull.pull_id, page_count=len(fds))
                self._outbox.send(delivery.SerializeToString(), fds)
            except VattError as error:
                failure = pb.HandleError(reason=error.reason, message=str(error))
                delivery = pb.HandleDelivery(pull_id=pull.pull_id, error=failure)
                self._outbox.send(delivery.SerializeToString(), [])
            return len(fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take_in(self, zones: Sequence[int], brought: Sequence[int]) -> None:
        """Keep copies of the slabs that are missed. From whom none is expected, they were let go already."""
        if self.source is not None or (self._may_bring and len(brought) != len(zones)):
            raise InvalidRequest("slabs are offered before Attach, each with its descriptor")
        for zone, fd in zip(zones, brought, strict=False):
            if zone not in self._offers and self.slabs.wants(zone, fd):
                self._offers[zone] = os.dup(fd)

    def _parse(self, pull: pb.HandlePull, packet: bytes) -> None:
        if len(packet) > MAX_HANDLE_PACKET_BYTES:
            raise InvalidRequest(f"a packet holds at most {MAX_HANDLE_PACKET_BYTES} bytes")
        try:
            pull.ParseFromString(packet)
        except DecodeError as error:
            raise InvalidRequest("not a HandlePull") from error

    async def _pull(self, pull: pb.HandlePull) -> list[int]:
        if self.source is None:
            raise InvalidRequest("attach first: this connection has no session yet")
        runs = [parse_run(run) for run in pull.runs]
        page_count = sum(run.extent.page_count for run in runs)
        if not 1 <= page_count <= MAX_FDS_PER_PACKET:
            raise InvalidRequest(f"pull 1 to {MAX_FDS_PER_PACKET} pages at a time")
        if len({page_id for run in runs for page_id in run.extent.page_ids}) < page_count:
            raise InvalidRequest("a page is pulled twice")
        await self._outbox.take_place()
        return await self.source.pull(runs)
