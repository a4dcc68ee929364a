"""gRPC calls, counted where they end, as go-grpc-prometheus counts them: ready-made dashboards know its names."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from vattd.tallies import Histogram

# By whether requests stream, and whether answers do: what such calls are called, and what makes a handler of them.
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("server_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("client_stream", grpc.stream_unary_rpc_method_handler),
    (True, True): ("bidi_stream", grpc.stream_stream_rpc_method_handler),
}


@dataclass(frozen=True, slots=True)
class Method:
    kind: str
    service: str
    name: str


@dataclass(slots=True)
class RpcCalls:
    """By method: how long calls took inside it, and how many ended with which code."""

    times: dict[Method, Histogram] = field(default_factory=dict)
    handled: Counter[tuple[Method, str]] = field(default_factory=Counter)

    def note(self, method: Method, code: str, took_s: float) -> None:
        self.times.setdefault(method, Histogram()).note(took_s)
        self.handled[method, code] += 1

    def copy(self) -> RpcCalls:
        return RpcCalls({method: times.copy() for method, times in self.times.items()}, Counter(self.handled))


class CountedCalls(grpc.GenericRpcHandler):
    """The methods of a service, which are all coroutines or async generators, with their calls counted.

    It stands between server and service, and not before the server as gRPC's interceptors do: those cost each call a
    chain of coroutines, and a flood of calls others 130 ms a lease instead of 10.
    """

    def __init__(self, service: grpc.GenericRpcHandler, calls: RpcCalls) -> None:
        self._service, self._calls = service, calls
        self._counted: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by path, of those that there are

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = handler_call_details.method
        counted = self._counted.get(path)
        if counted is None:
            handler = self._service.service(handler_call_details)
            if handler is None:  # its name is the caller's invention, and must not become a label
                return None
            counted = self._counted[path] = self._count(path, handler)
        return counted

    def _count(self, path: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        kind, make = _KINDS[handler.request_streaming, handler.response_streaming]
        _, service, name = path.split("/")
        method = Method(kind, service, name)
        serve = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def call(request: Any, context: Any) -> Any:
            with _Counted(self._calls, method, context):
                return await serve(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with _Counted(self._calls, method, context):
                async with aclosing(serve(request, context)) as answers:
                    async for answer in answers:
                        yield answer

        counted = stream if inspect.isasyncgenfunction(serve) else call
        return make(counted, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


class _Counted:
    """One call, from where its method begins to where it ends, in whatever way."""

    __slots__ = ("_began_s", "_calls", "_context", "_method")

    def __init__(self, calls: RpcCalls, method: Method, context: Any) -> None:
        self._calls, self._method, self._context = calls, method, context

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took_s = time.perf_counter() - self._began_s
        self._calls.note(self._method, _code_of(error, self._context.code()), took_s)


def _code_of(error: BaseException | None, told: grpc.StatusCode | None) -> str:
    """As Go spells it: OK, NotFound, ... A caller that went away, or whose deadline passed, gives Canceled."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return "Canceled"
    code = told or (grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN)
    return _GO_NAMES[code]


_GO_NAMES = {code: "".join(word.title() for word in code.name.split("_")) for code in grpc.StatusCode} | {
    grpc.StatusCode.OK: "OK",
    grpc.StatusCode.CANCELLED: "Canceled",
}
