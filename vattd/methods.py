"""A service's methods as gRPC serves them, with a parser that knows what to say to bytes that are no message.

gRPC's own way to register a service logs a traceback for each such request and answers UNKNOWN: whoever may connect
could fill the disk with our log. And while a message is parsed, the event loop stands still: a large one is parsed only
once it is known who sent it, and not many of one user's after each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from vatt.errors import InvalidRequest

# Few honest messages are so large; this one takes some milliseconds to parse, if it wants to.
LARGE_BYTES = 64 << 10
# After a large message, others have the loop for so many times as long as it took.
OTHERS_SHARE = 3.0
_FIRST_FIELD = 0x0A  # field 1, of a length that follows


class Lane:
    """Where the large messages of one user are parsed, one after the other."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def parse(self, kind: type[Message], body: bytes) -> Message:
        """Raises DecodeError."""
        now = asyncio.get_running_loop().time
        async with self._turn:
            began_s = now()
            try:
                return kind.FromString(body)
            finally:
                await asyncio.sleep(OTHERS_SHARE * (now() - began_s))


@dataclass(frozen=True, slots=True)
class Unparsed:
    """What a method is given in place of its request, if that is large or no message."""

    kind: type[Message]
    body: bytes

    def head(self) -> Message:
        """The request with its first field only. It is what names the sender, and every protobuf library writes it
        first. Raises DecodeError."""
        is_short = len(self.body) > 1 and self.body[0] == _FIRST_FIELD and self.body[1] < 0x80
        return self.kind.FromString(self.body[: 2 + self.body[1]] if is_short else b"")


async def well_formed(request: Any, lane_of: Callable[[Message], Lane]) -> Any:
    """The request itself: each method does this first.

    `lane_of` says by the head of a large one where it is parsed, or raises what it is refused with. Raises
    InvalidRequest.
    """
    if type(request) is not Unparsed:
        return request
    try:
        if len(request.body) <= LARGE_BYTES:
            return request.kind.FromString(request.body)
        return await lane_of(request.head()).parse(request.kind, request.body)
    except DecodeError:
        raise InvalidRequest(f"not a {request.kind.DESCRIPTOR.name}") from None


def methods_of(descriptor: ServiceDescriptor, service: object) -> grpc.GenericRpcHandler:
    """All methods that the descriptor names."""
    handlers = {}
    for method in descriptor.methods:
        make: Any = (
            grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = make(
            getattr(service, method.name),
            request_deserializer=_parser_of(GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _parser_of(kind: type[Message]) -> Callable[[bytes], Message | Unparsed]:
    from_string = kind.FromString

    def parse(body: bytes) -> Message | Unparsed:
        if len(body) > LARGE_BYTES:
            return Unparsed(kind, body)
        try:
            return from_string(body)
        except DecodeError:
            return Unparsed(kind, body)

    return parse
