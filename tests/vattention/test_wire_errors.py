from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from tests.vattention.failed_call import FailedCall
from vatt import errors
from vattention.wire_errors import from_rpc


def refused(code: grpc.StatusCode, text: str, reason: str, domain: str = "vatt", **fields: int) -> FailedCall:
    info = error_details_pb2.ErrorInfo(
        domain=domain, reason=reason, metadata={name: str(value) for name, value in fields.items()}
    )
    detail = Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=text, details=[detail])
    return FailedCall(code, text, [("grpc-status-details-bin", status.SerializeToString())])


def test_an_error_comes_back_as_its_class_with_its_numbers() -> None:
    error = from_rpc(
        refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "x", "POOL_EXHAUSTED", requested_pages=7, free_pages=3)
    )
    assert isinstance(error, errors.PoolExhausted)
    assert (error.requested_pages, error.free_pages) == (7, 3)


@pytest.mark.parametrize("kind", [errors.SessionFenced, errors.TenantDenied, errors.ShuttingDown, errors.DeviceLost])
def test_an_error_without_numbers_keeps_its_message(kind: type[errors.VattError]) -> None:
    error = from_rpc(refused(grpc.StatusCode.UNAVAILABLE, "what to do", kind.reason))
    assert type(error) is kind
    assert str(error) == "what to do"


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
def test_a_lost_answer_is_a_daemon_that_cannot_be_reached(code: grpc.StatusCode) -> None:
    error = from_rpc(FailedCall(code, "connection reset"))
    assert type(error) is errors.DaemonUnreachable
    assert "vattd start" in str(error)


def test_what_vattd_did_not_say_is_a_plain_error() -> None:
    strangers = [
        FailedCall(grpc.StatusCode.UNIMPLEMENTED, "no such method"),
        FailedCall(grpc.StatusCode.INTERNAL, "odd"),
        FailedCall(
            grpc.StatusCode.INTERNAL, "odd", [("grpc-status-details-bin", status_pb2.Status().SerializeToString())]
        ),
        refused(grpc.StatusCode.INTERNAL, "odd", "POOL_EXHAUSTED", domain="somebody.else"),
        refused(grpc.StatusCode.INTERNAL, "odd", "A_REASON_OF_NEXT_YEAR"),
        refused(grpc.StatusCode.INTERNAL, "odd", "POOL_EXHAUSTED"),  # without its numbers
    ]
    for stranger in strangers:
        error = from_rpc(stranger)
        assert type(error) is errors.VattError
        assert str(error)
