"""A service's methods as gRPC serves them, with a parser that knows what to say to bytes that are no message.

gRPC's own way to register a service logs a traceback for each such request and answers UNKNOWN: whoever may connect
could fill the disk with our log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from vatt.errors import InvalidRequest


class Malformed:
    """What a method is given in place of its request."""

    def __init__(self, kind: str) -> None:
        self.error = InvalidRequest(f"not a {kind}")


def check_well_formed(request: object) -> None:
    """Each method does this first. Raises InvalidRequest."""
    if type(request) is Malformed:
        raise request.error


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


def _parser_of(kind: type[Message]) -> Callable[[bytes], Message | Malformed]:
    from_string, name = kind.FromString, kind.DESCRIPTOR.name

    def parse(body: bytes) -> Message | Malformed:
        try:
            return from_string(body)
        except DecodeError:
            return Malformed(name)

    return parse
