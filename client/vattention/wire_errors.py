"""gRPC's errors as ours: the inverse of the table that vattd answers by."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from vatt.errors import DaemonUnreachable, SessionFenced, VattError, from_wire

DOMAIN = "vatt"
# Codes that say nothing of what became of the request: it may have been done. Only a repeat or a CancelLease tells.
_ANSWER_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)


def from_rpc(error: grpc.RpcError) -> VattError:
    """The error that vattd raised; what did not come from vattd is told by its gRPC code.

    DaemonUnreachable means that the answer was lost: the request may have been done, or not.
    """
    if not isinstance(error, grpc.Call):
        return VattError(str(error))
    code = error.code()
    text = error.details() or code.name
    info = _error_info(error)
    if info is not None:
        return from_wire(info.reason, text, info.metadata)
    if code in _ANSWER_LOST:
        return DaemonUnreachable(
            f"vattd does not answer ({code.name}: {text}): see `vattctl status`, or start it with `vattd start`"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VattError(f"what answers at this socket is not vattd's engine service: {text}")
    return VattError(f"{code.name}: {text}")


def stream_ended(error: grpc.RpcError | None) -> VattError:
    """Why the session's stream is over; a stream that ends without an error was closed by vattd."""
    if error is None:
        return SessionFenced("vattd closed the session's stream")
    return from_rpc(error)


def _error_info(call: grpc.Call) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the details contradict the status line: not something that vattd sent
        return None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None
