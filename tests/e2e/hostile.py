"""A client that says everything that it should not: made at random from one seed, sent to a real vattd.

Each input is one gRPC request, one packet on the handle socket, one HTTP request, or one connection full of noise.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tests.daemon import Vattd
from tests.raw_engine import HandleSocket, RawEngine
from vatt.protocol import MAX_FDS_PER_PACKET, MAX_HANDLE_PACKET_BYTES
from vatt.v1 import vatt_pb2 as pb
from vattention.vmm.host_slabs import SLAB_SEALS

ANSWER_WITHIN_S = 30.0
CALLS_AT_A_TIME = 64
KEPT_SESSIONS = 6
NUMBERS = (
    0,
    1,
    -1,
    2,
    253,
    254,
    1 << 16,
    1 << 20,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 41,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
)
NAMES = (
    "",
    "innocent",
    "A",
    "../x",
    "a" * 63,
    "a" * 64,
    "x\0y",
    "\x1b[2J",
    "é",
    "\U0010ffff",
    "x" * 5000,
    "%s%n",
    "a\n",
)
REQUESTS: dict[str, type[Message]] = {
    "Attach": pb.AttachRequest,
    "LeasePages": pb.LeasePagesRequest,
    "CancelLease": pb.CancelLeaseRequest,
    "ReturnPages": pb.ReturnPagesRequest,
    "AnswerReclaim": pb.AnswerReclaimRequest,
    "ReportUsage": pb.ReportUsageRequest,
    "Detach": pb.DetachRequest,
}
# What a client can be told. INTERNAL would be a bug of vattd's.
FAIR_ANSWERS = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,  # by ourselves
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class HostileClient:
    """`send` sends one input. What comes back is counted in `answers`; `foreign` are another session's pages."""

    def __init__(self, vattd: Vattd, seed: int, foreign: Sequence[pb.PageRun], foreign_session: str) -> None:
        self.vattd, self.random = vattd, random.Random(seed)
        self.answers: Counter[str] = Counter()
        self._foreign, self._foreign_session = list(foreign), foreign_session
        self._stack = ExitStack()
        self._serial = itertools.count()
        self._calls: list[Any] = []
        self._kept: list[RawEngine] = []  # sessions that an odd Attach gave us
        self._used_tokens: list[bytes] = [b""]
        self._old_runs: list[pb.PageRun] = []
        self._channel: Any = self._stack.enter_context(grpc.insecure_channel(f"unix:{vattd.sockets.engine}"))
        self._files = self._odd_files()
        self._handles: HandleSocket | None = None  # not attached
        self.engine = self._attach()

    def close(self) -> None:
        self.settle()
        for engine in (*self._kept, self.engine):
            leave(engine)
        if self._handles is not None:
            self._handles.close()
        self._stack.close()

    def send(self) -> None:
        kinds: list[tuple[int, Callable[[], None]]] = [
            (30, self._made_request),
            (25, self._broken_request),
            (20, self._packet),
            (10, self._packet_before_attach),
            (10, self._attach_request),
            (3, self._http),
            (2, self._noise),
        ]
        [act] = self.random.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
        act()
        if len(self._calls) >= CALLS_AT_A_TIME:
            self.settle()

    def settle(self) -> None:
        """Wait until everything is answered."""
        for method, call in self._calls:
            if method == "Attach":
                with suppress(grpc.RpcError):
                    next(call)
                call.cancel()
            code = call.code()
            self.answers[code.name] += 1
            if code not in FAIR_ANSWERS:
                raise AssertionError(f"{method} answered {code}: {call.details()}")
        self._calls.clear()
        try:
            self.engine.report()
        except grpc.RpcError:  # we have ended our session, or had it fenced
            self._start_over()

    # gRPC

    def _made_request(self) -> None:
        """The right type, with fields that make no sense."""
        method = self.random.choice([name for name in REQUESTS if name != "Attach"])
        if method == "Detach" and self.random.random() < 0.9:
            method = "LeasePages"
        self._call(method, self._request(method).SerializeToString())

    def _broken_request(self) -> None:
        """Bytes that are no such message, or hardly."""
        method = self.random.choice(list(REQUESTS))
        body = self._request(method).SerializeToString()
        self._call(method, self._break(body))

    def _request(self, method: str) -> Message:
        chance = self.random
        if method == "Attach":
            return self._attach_message(self._token())
        key = self._key()
        if method == "LeasePages":
            return pb.LeasePagesRequest(
                key=key,
                request_id=self._word(),
                page_count=self._number(),
                min_page_count=chance.choice([0, self._number()]),
                purpose=cast(Any, chance.choice([0, 1, 2, 3, 99, -1])),
                wait=chance.choice([None, Duration(seconds=self._number(), nanos=chance.choice([0, -5, 1 << 30]))]),
            )
        if method == "CancelLease":
            return pb.CancelLeaseRequest(key=key, request_id=self._word())
        if method == "ReturnPages":
            return pb.ReturnPagesRequest(key=key, runs=self._runs())
        if method == "AnswerReclaim":
            return pb.AnswerReclaimRequest(key=key, reclaim_id=self._number())
        if method == "ReportUsage":
            names = ("mapped_pages", "token_bytes", "static_reservation_bytes", "paged16_bytes", "paged256_bytes")
            return pb.ReportUsageRequest(key=key, **{name: self._number() for name in names})
        return pb.DetachRequest(key=key)

    def _attach_request(self) -> None:
        """By a token that is good, used, foreign or none; sometimes there is a session afterwards."""
        if self.random.random() < 0.6:
            self._call("Attach", self._attach_message(self._token()).SerializeToString())
            return
        if len(self._kept) >= KEPT_SESSIONS:
            engine = self._kept.pop(self.random.randrange(len(self._kept)))
            self._used_tokens.append(engine.handles.welcome.token)
            leave(engine)
        message = self._attach_message(b"")
        fields = {field.name: getattr(message, field.name) for field, _ in message.ListFields()}
        for name in ("token", "tenant"):
            fields.pop(name, None)
        if self.random.random() < 0.5:
            fields = {}
        try:
            self._kept.append(RawEngine(self.vattd.sockets, self._tenant(), **fields))
        except grpc.RpcError as error:
            self.answers[error.code().name] += 1

    def _attach_message(self, token: bytes) -> pb.AttachRequest:
        chance = self.random
        return pb.AttachRequest(
            token=token,
            tenant=self._tenant(),
            min_protocol_version=chance.choice([1, 1, 1, 0, -(1 << 31), (1 << 31) - 1]),
            max_protocol_version=chance.choice([1, 1, 1, 0, -(1 << 31), (1 << 31) - 1]),
            client_name=chance.choice(["", self._word()]),
            resume=chance.choice([None, self._key()]),
            claims=chance.choice([[], self._runs()]),
        )

    def _call(self, method: str, body: bytes) -> None:
        path = f"/vatt.v1.EngineService/{method}"
        if method == "Attach":
            self._calls.append((method, self._channel.unary_stream(path)(body, timeout=ANSWER_WITHIN_S)))
            return
        # A lease may wait for an hour: nobody waits for that here, and to break it off is an input as good as any.
        timeout_s = 0.5 if method == "LeasePages" else ANSWER_WITHIN_S
        self._calls.append((method, self._channel.unary_unary(path).future(body, timeout=timeout_s)))

    # The handle socket

    def _packet(self) -> None:
        """On a session's own connection."""
        if not self._exchange(self.engine.handles, self._packet_bytes()):
            self._start_over()

    def _packet_before_attach(self) -> None:
        if self._handles is None:
            self._handles = HandleSocket(self.vattd.sockets)
        if not self._exchange(self._handles, self._packet_bytes()):
            self._handles.close()
            self._handles = None

    def _packet_bytes(self) -> bytes:
        chance = self.random
        pull = pb.HandlePull(
            pull_id=self._number(),
            runs=self._runs()[:500],
            offered_zones=chance.choice(
                [[], [chance.choice([0, 1, 2, 3, self._number()]) for _ in range(chance.randrange(300))]]
            ),
        ).SerializeToString()
        return self._break(pull) if chance.random() < 0.5 else pull

    def _exchange(self, handles: HandleSocket, packet: bytes) -> bool:
        """False: vattd closed the connection, as it may."""
        fds = self._descriptors()
        try:
            socket.send_fds(handles.socket, [packet], fds)
        except OSError:  # larger than a socket takes at once
            return True
        finally:
            for fd in fds:
                os.close(fd)
        try:
            answer, got, _, _ = socket.recv_fds(handles.socket, MAX_HANDLE_PACKET_BYTES, MAX_FDS_PER_PACKET)
        except ConnectionResetError:  # it was closed before our packet was read
            return False
        for fd in got:
            os.close(fd)
        if not answer:
            return False
        delivery = pb.HandleDelivery.FromString(answer)
        if delivery.error.reason in ("INTERNAL", "DRIVER_ERROR"):
            raise AssertionError(f"a packet was answered {delivery.error}")
        self.answers[f"packet {delivery.error.reason or 'served'}"] += 1
        return True

    def _descriptors(self) -> list[int]:
        """What rides along: duplicates, so that they may be closed."""
        count = self.random.choice([0, 0, 0, 1, 2, 10, MAX_FDS_PER_PACKET])
        return [os.dup(self.random.choice(self._files)) for _ in range(count)]

    def _odd_files(self) -> list[int]:
        """Of every kind that a process has, and some that look like a slab."""
        opened: list[int] = [
            os.open("/dev/null", os.O_RDWR),
            os.open("/", os.O_RDONLY),
            os.open("/proc/self/mem", os.O_RDWR),
        ]
        opened += os.pipe()
        opened += [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        opened += [end.detach() for end in (socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM))]
        opened.append(os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE))
        opened.append(os.pidfd_open(os.getpid()))
        opened.append(os.eventfd(0))
        for size_bytes, seals in ((0, 0), (1 << 20, 0), (1 << 40, SLAB_SEALS), (1 << 56, SLAB_SEALS), (4096, 0x1F)):
            memfd = os.memfd_create("vattd-slab", os.MFD_ALLOW_SEALING)
            opened.append(memfd)
            os.ftruncate(memfd, size_bytes)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
        for fd in opened:
            self._stack.callback(os.close, fd)
        return opened

    # The others

    def _http(self) -> None:
        """To where the metrics are."""
        host, port = self.vattd.ready["metrics"].removeprefix("http://").removesuffix("/metrics").split(":")
        lines = [
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /metrics?name[]=%ff&name[]= HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET " + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n",
            b"OPTIONS * HTTP/9.9\r\n" + b"a: b\r\n" * 300 + b"\r\n",
            b"\r\n",
            self.random.randbytes(300) + b"\r\n\r\n",
        ]
        with socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S) as connection, suppress(OSError):
            connection.sendall(self.random.choice(lines))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    def _noise(self) -> None:
        """To the engine socket, beneath gRPC."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        noise = self.random.randbytes(self.random.choice([1, 9, 100, 5000]))
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(ANSWER_WITHIN_S)
            connection.connect(str(self.vattd.sockets.engine))
            connection.sendall(self.random.choice([noise, preface + noise, preface + settings + noise]))

    # Parts

    def _number(self) -> int:
        return self.random.choice([self.random.choice(NUMBERS), self.random.randrange(1, 40)])

    def _word(self) -> str:
        return self.random.choice(
            [self.random.choice(NAMES), f"r{self.random.randrange(50)}", f"n{next(self._serial)}"]
        )

    def _tenant(self) -> str:
        return self.random.choice([self.random.choice(NAMES), f"hostile-{self.random.randrange(30)}", "hostile"])

    def _key(self) -> pb.SessionKey:
        own = self.engine.key
        return self.random.choice(
            [
                own,
                own,
                own,
                pb.SessionKey(session_id=own.session_id, secret=self.random.randbytes(16)),
                pb.SessionKey(session_id=self._foreign_session, secret=own.secret),
                pb.SessionKey(session_id=self._word(), secret=self.random.randbytes(self.random.choice([0, 16, 1000]))),
            ]
        )

    def _token(self) -> bytes:
        return self.random.choice([self.random.randbytes(16), self.random.choice(self._used_tokens)])

    def _run(self) -> pb.PageRun:
        chance = self.random
        kind = chance.random()
        if kind < 0.3 and self._foreign:
            return chance.choice(self._foreign)
        if kind < 0.4 and self._old_runs:
            return chance.choice(self._old_runs)
        return pb.PageRun(first_page_id=self._number(), page_count=self._number(), generation=self._number())

    def _runs(self) -> list[pb.PageRun]:
        count = self.random.choice([0, 1, 1, 2, 10])
        if self.random.random() < 0.002:
            return [self._run()] * (1 << 16 | self.random.randrange(2))
        return [self._run() for _ in range(count)]

    def _break(self, body: bytes) -> bytes:
        chance = self.random
        kind = chance.randrange(6)
        if kind == 0:
            return chance.randbytes(chance.choice([0, 1, 20, 300, 20_000]))
        if kind == 1:
            return body[: chance.randrange(len(body) + 1)]
        if kind == 2:
            return body + body
        if kind == 3:
            return body + b"\x0b" * chance.choice([1, 50, 5000])  # groups in groups
        if kind == 4:
            return body + b"\xff" * chance.choice([1, 10, MAX_HANDLE_PACKET_BYTES])
        changed = bytearray(body or b"\0")
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    def _attach(self) -> RawEngine:
        return RawEngine(self.vattd.sockets, "hostile")

    def _start_over(self) -> None:
        """Our session has lost its connection, by our own fault."""
        self._used_tokens.append(self.engine.handles.welcome.token)
        leave(self.engine)
        self.engine = self._attach()
        with suppress(grpc.RpcError):
            old = self.engine.lease(2)
            self._old_runs = [leased.run for leased in old]
            self.engine.give_back(old)


def leave(engine: RawEngine) -> None:
    """Whatever has become of the session: our process lives on, so it would stay, fenced."""
    with suppress(grpc.RpcError):
        engine.detach()
    engine.close()
