"""What vattd promises a tenant, as the library shows it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vatt.v1 import vatt_pb2


class MinMode(enum.Enum):
    """What becomes of the part of a min that its tenant does not use."""

    SOFT = "soft"  # lent to others, and asked back when its tenant wants it
    HARD = "hard"  # kept free


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What the session's tenant, with all its sessions together, was promised, and how much it may have."""

    min_bytes: int
    max_bytes: int | None  # None: the whole pool
    weight: int  # its share of what is left beyond all mins, beside the other tenants'
    min_mode: MinMode
    revision: int  # of all tenants' guarantees; 0: nobody ever set one

    @classmethod
    def from_wire(cls, told: vatt_pb2.Guarantee) -> Guarantee:
        return cls(
            min_bytes=told.min_bytes,
            max_bytes=told.max_bytes if told.HasField("max_bytes") else None,
            weight=told.weight,
            min_mode=MinMode.HARD if told.min_mode == vatt_pb2.MIN_MODE_HARD else MinMode.SOFT,
            revision=told.revision,
        )
