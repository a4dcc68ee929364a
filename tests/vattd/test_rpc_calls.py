"""gRPC calls are counted once each, however they end, and only under names that are ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from vattd.rpc_calls import CountedCalls, RpcCalls

Context = grpc.aio.ServicerContext[bytes, bytes]


class Echo:
    """A service of plain bytes: b"abort", b"fail" and b"hang" do what they say, others are answered."""

    def __init__(self) -> None:
        self.hangs = asyncio.Event()
        self.ended = asyncio.Event()

    async def act(self, request: bytes, context: Context) -> bytes:
        if request == b"abort":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "none left")
        if request == b"fail":
            raise RuntimeError("a bug")
        if request == b"hang":
            self.hangs.set()
            await asyncio.Event().wait()
        return request

    async def one(self, request: bytes, context: Context) -> bytes:
        return await self.act(request, context)

    async def many(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            yield request
            yield await self.act(request, context)
        finally:
            self.ended.set()

    async def written(self, request: bytes, context: Context) -> None:
        """An answer in the other of grpc.aio's two ways, as the health service's Watch is."""
        await context.write(await self.act(request, context))

    async def both(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.act(request, context)

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Echo",
            {
                "One": grpc.unary_unary_rpc_method_handler(self.one),
                "Many": grpc.unary_stream_rpc_method_handler(self.many),
                "Written": grpc.unary_stream_rpc_method_handler(self.written),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
            },
        )


# A grpc.aio.Channel, as the stubs have it, knows no calls of bytes.
Story = Callable[[Any, Echo], Awaitable[None]]


def counted(tmp_path: Path, story: Story) -> RpcCalls:
    """What was counted of a story with a server, which has stopped by then."""
    calls = RpcCalls()

    async def run() -> None:
        echo, server = Echo(), grpc.aio.server()
        server.add_generic_rpc_handlers((CountedCalls(echo.handler(), calls),))
        server.add_insecure_port(f"unix:{tmp_path}/s")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            await asyncio.wait_for(story(channel, echo), 20)
        await server.stop(None)

    asyncio.run(run())
    return calls


def codes(calls: RpcCalls) -> dict[tuple[str, str, str], int]:
    assert {method.service for method in calls.times} <= {"test.Echo"}
    for method, times in calls.times.items():
        assert sum(times.counts) == sum(n for (other, _), n in calls.handled.items() if other == method)
    return {(method.kind, method.name, code): count for (method, code), count in calls.handled.items()}


async def collect(call: Any) -> list[bytes]:
    return [answer async for answer in call]


def test_calls_of_every_kind_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    async def story(channel: Any, echo: Echo) -> None:
        one, many = channel.unary_unary("/test.Echo/One"), channel.unary_stream("/test.Echo/Many")
        written, both = channel.unary_stream("/test.Echo/Written"), channel.stream_stream("/test.Echo/Both")
        assert [await one(b"a"), await one(b"b")] == [b"a", b"b"]
        assert await collect(many(b"a")) == [b"a", b"a"]
        assert await collect(written(b"a")) == [b"a"]
        assert await collect(both([b"a", b"b"])) == [b"a", b"b"]
        for begin in (one, many, written):
            with pytest.raises(grpc.aio.AioRpcError, match="none left"):
                await (one(b"abort") if begin is one else collect(begin(b"abort")))
        with pytest.raises(grpc.aio.AioRpcError, match="a bug"):
            await one(b"fail")

    assert codes(counted(tmp_path, story)) == {
        ("unary", "One", "OK"): 2,
        ("unary", "One", "ResourceExhausted"): 1,
        ("unary", "One", "Unknown"): 1,
        ("server_stream", "Many", "OK"): 1,
        ("server_stream", "Many", "ResourceExhausted"): 1,
        ("server_stream", "Written", "OK"): 1,
        ("server_stream", "Written", "ResourceExhausted"): 1,
        ("bidi_stream", "Both", "OK"): 1,
    }


@pytest.mark.parametrize("name", ["One", "Many"])
def test_a_call_that_its_caller_gave_up_is_counted_as_canceled_and_its_method_ends(tmp_path: Path, name: str) -> None:
    async def story(channel: Any, echo: Echo) -> None:
        make = channel.unary_unary if name == "One" else channel.unary_stream
        call: Any = make(f"/test.Echo/{name}")(b"hang")
        if name == "Many":
            assert await call.read() == b"hang"
        await echo.hangs.wait()
        call.cancel()
        if name == "Many":
            await echo.ended.wait()

    kind = "unary" if name == "One" else "server_stream"
    assert codes(counted(tmp_path, story)) == {(kind, name, "Canceled"): 1}


def test_a_call_whose_time_is_over_is_counted_as_canceled(tmp_path: Path) -> None:
    async def story(channel: Any, echo: Echo) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
            await channel.unary_unary("/test.Echo/One")(b"hang", timeout=0.2)
        assert echo.hangs.is_set()

    assert codes(counted(tmp_path, story)) == {("unary", "One", "Canceled"): 1}


def test_methods_that_nobody_has_leave_no_names(tmp_path: Path) -> None:
    async def story(channel: Any, echo: Echo) -> None:
        for path in ("/test.Echo/Two", "/other.Echo/One", "/invented", "/a/b/c"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"a")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await channel.unary_unary("/test.Echo/One")(b"a") == b"a"

    assert codes(counted(tmp_path, story)) == {("unary", "One", "OK"): 1}


def test_servers_that_are_counted_together_answer_with_their_own_methods_all_the_same(tmp_path: Path) -> None:
    async def answers(place: str, calls: RpcCalls, *services: Echo) -> list[object]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(CountedCalls(service.handler(), calls) for service in services))
        server.add_insecure_port(place)
        await server.start()
        said: list[object] = []
        async with grpc.aio.insecure_channel(place) as opened:
            channel: Any = opened
            for _ in range(2):
                try:
                    said.append(await channel.unary_unary("/test.Echo/One")(b"a"))
                except grpc.aio.AioRpcError as error:
                    said.append(error.code())
        await server.stop(None)
        return said

    class Other(Echo):
        async def act(self, request: bytes, context: Context) -> bytes:
            return b"other"

    async def run() -> list[list[object]]:
        calls = RpcCalls()
        rows: list[tuple[Echo, ...]] = [(Echo(),), (Other(),), ()]
        return [await answers(f"unix:{tmp_path}/{number}", calls, *services) for number, services in enumerate(rows)]

    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    assert asyncio.run(run()) == [[b"a"] * 2, [b"other"] * 2, [unimplemented] * 2]
