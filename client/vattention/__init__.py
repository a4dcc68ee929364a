"""Contiguous KV caches over physical pages that vattd owns and lends.

    from vattention import KVCache, KVCacheSpec, Session

    with Session.connect("my-model") as session, KVCache(session, spec) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 100)
        k, v = cache.layer(0)

A serving system written for microsoft/vattention finds that module's functions here as well (vattention.upstream).

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
    Draining,
    DriverError,
    ForkedSession,
    InvalidRequest,
    LeaseCancelled,
    LimitExceeded,
    MpsRefused,
    OutOfMemory,
    Overcommitted,
    PageNotHeld,
    PoolExhausted,
    SessionEvicted,
    SessionFenced,
    SessionUnknown,
    ShuttingDown,
    SystemLimit,
    TenantDenied,
    TenantUnknown,
    TokenRefused,
    TooBusy,
    VattError,
    VersionUnsupported,
    WaitHopeless,
)

if TYPE_CHECKING:
    from vattention.guarantee import Guarantee, MinMode
    from vattention.joint_lease import lease_on_all
    from vattention.kvcache import KVCache, KVCacheStats
    from vattention.layout import KVCacheSpec, Layout
    from vattention.memory_report import MemoryReport
    from vattention.page_source import LeasePurpose
    from vattention.returns import StillHeld
    from vattention.session import Session, SessionState
    from vattention.upstream import (
        alloc_new_batch_idx,
        cleanup,
        free_batch_idx,
        init_kvcache,
        map_common_pages,
        num_free_kvblocks,
        release_kvcache_physical,
        reserve_physical_pages,
        set_deferred_reclamation,
        set_verbose,
        show_allocator_state,
        show_kvcache_config,
        step,
        step_async,
    )

_MODULE_OF = {
    "Guarantee": "vattention.guarantee",
    "KVCache": "vattention.kvcache",
    "KVCacheSpec": "vattention.layout",
    "KVCacheStats": "vattention.kvcache",
    "Layout": "vattention.layout",
    "LeasePurpose": "vattention.page_source",
    "MemoryReport": "vattention.memory_report",
    "MinMode": "vattention.guarantee",
    "Session": "vattention.session",
    "SessionState": "vattention.session",
    "StillHeld": "vattention.returns",
    "alloc_new_batch_idx": "vattention.upstream",
    "cleanup": "vattention.upstream",
    "free_batch_idx": "vattention.upstream",
    "init_kvcache": "vattention.upstream",
    "map_common_pages": "vattention.upstream",
    "lease_on_all": "vattention.joint_lease",
    "num_free_kvblocks": "vattention.upstream",
    "release_kvcache_physical": "vattention.upstream",
    "reserve_physical_pages": "vattention.upstream",
    "set_deferred_reclamation": "vattention.upstream",
    "set_verbose": "vattention.upstream",
    "show_allocator_state": "vattention.upstream",
    "show_kvcache_config": "vattention.upstream",
    "step": "vattention.upstream",
    "step_async": "vattention.upstream",
}

__all__ = [
    "Closed",
    "DaemonUnreachable",
    "DeviceLost",
    "DeviceNotFound",
    "Draining",
    "DriverError",
    "ForkedSession",
    "Guarantee",
    "InvalidRequest",
    "KVCache",
    "KVCacheSpec",
    "KVCacheStats",
    "Layout",
    "LeaseCancelled",
    "LeasePurpose",
    "LimitExceeded",
    "MemoryReport",
    "MinMode",
    "MpsRefused",
    "OutOfMemory",
    "Overcommitted",
    "PageNotHeld",
    "PoolExhausted",
    "Session",
    "SessionEvicted",
    "SessionFenced",
    "SessionState",
    "SessionUnknown",
    "ShuttingDown",
    "StillHeld",
    "SystemLimit",
    "TenantDenied",
    "TenantUnknown",
    "TokenRefused",
    "TooBusy",
    "VattError",
    "VersionUnsupported",
    "WaitHopeless",
    "alloc_new_batch_idx",
    "cleanup",
    "free_batch_idx",
    "init_kvcache",
    "lease_on_all",
    "map_common_pages",
    "num_free_kvblocks",
    "release_kvcache_physical",
    "reserve_physical_pages",
    "set_deferred_reclamation",
    "set_verbose",
    "show_allocator_state",
    "show_kvcache_config",
    "step",
    "step_async",
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
