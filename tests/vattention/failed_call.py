"""A gRPC call that failed, for tests of what the library makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc


class FailedCall(grpc.RpcError, grpc.Call):
    """A call that failed, as the channel hands it over."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Sequence[tuple[str, bytes]] = ()) -> None:
        self._code, self._text, self._trailing = code, text, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Sequence[tuple[str, bytes]]:  # type: ignore[override]
        return self._trailing

    def initial_metadata(self) -> None:  # type: ignore[override]
        raise NotImplementedError

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False
