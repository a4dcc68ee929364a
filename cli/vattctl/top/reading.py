"""What a vattd said at one time."""

from __future__ import annotations

from dataclasses import dataclass

from vatt.v1 import vatt_pb2 as pb


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, and when it came by a clock that never jumps. `page_map` has no cells where vattd makes none."""

    at_s: float
    status: pb.GetStatusResponse
    page_map: pb.GetPageMapResponse
