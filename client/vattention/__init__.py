"""Contiguous KV caches over physical pages that vattd owns and lends.

    from vattention import KVCache, KVCacheSpec, Session

    with Session.connect("my-model") as session, KVCache(session, spec) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 100)
        k, v = cache.layer(0)

Importing this pulls in neither torch nor gRPC: vattd itself imports `vattention.vmm`. Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vatt.errors import (
    Closed,
    DaemonUnreachable,
    DeviceLost,
    DeviceNotFound,
    DriverError,
    ForkedSession,
    InvalidRequest,
    LeaseCancelled,
    LimitExceeded,
    OutOfMemory,
    PageNotHeld,
    PoolExhausted,
    SessionFenced,
    SessionUnknown,
    ShuttingDown,
    SystemLimit,
    TenantDenied,
    TokenRefused,
    VattError,
    VersionUnsupported,
)

if TYPE_CHECKING:
    from vattention.kvcache import KVCache, KVCacheStats
    from vattention.layout import KVCacheSpec, Layout
    from vattention.page_source import LeasePurpose
    from vattention.session import Session, SessionState

_MODULE_OF = {
    "KVCache": "vattention.kvcache",
    "KVCacheSpec": "vattention.layout",
    "KVCacheStats": "vattention.kvcache",
    "Layout": "vattention.layout",
    "LeasePurpose": "vattention.page_source",
    "Session": "vattention.session",
    "SessionState": "vattention.session",
}

__all__ = [
    "Closed",
    "DaemonUnreachable",
    "DeviceLost",
    "DeviceNotFound",
    "DriverError",
    "ForkedSession",
    "InvalidRequest",
    "KVCache",
    "KVCacheSpec",
    "KVCacheStats",
    "Layout",
    "LeaseCancelled",
    "LeasePurpose",
    "LimitExceeded",
    "OutOfMemory",
    "PageNotHeld",
    "PoolExhausted",
    "Session",
    "SessionFenced",
    "SessionState",
    "SessionUnknown",
    "ShuttingDown",
    "SystemLimit",
    "TenantDenied",
    "TokenRefused",
    "VattError",
    "VersionUnsupported",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
