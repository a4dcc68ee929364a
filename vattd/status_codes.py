"""The one table from our errors to gRPC's. The library has its inverse, by the reason in the details."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vatt import errors
from vatt.protocol import ERROR_DOMAIN

_CODES: dict[type[errors.VattError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PoolExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SystemLimit: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LeaseCancelled: grpc.StatusCode.ABORTED,
    errors.SessionUnknown: grpc.StatusCode.NOT_FOUND,
    errors.PageNotHeld: grpc.StatusCode.NOT_FOUND,
    errors.SessionFenced: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VersionUnsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MpsRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionEvicted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overcommitted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TenantUnknown: grpc.StatusCode.NOT_FOUND,
    errors.TokenRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.KillRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.TenantDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.DeviceLost: grpc.StatusCode.DATA_LOSS,
    errors.VattError: grpc.StatusCode.INTERNAL,
}


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.VattError) -> NoReturn:
    """End the call with this error, its reason and its numbers."""
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=ERROR_DOMAIN,
        metadata={name: str(getattr(error, name)) for name in error.wire_fields},
    )
    detail = AnyMessage()
    detail.Pack(info)
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=str(error), details=[detail]))
    await context.abort(status.code, status.details, tuple(status.trailing_metadata))
