"""A physical driver whose pages are numbers, that fails where a test says."""

from __future__ import annotations

import os
from collections.abc import Callable

from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm.driver import Device, DeviceMemory, HandleKind, Placement


class FakeDriver:
    """Checks that it is only ever asked what makes sense. `fail` may raise before any call: (call, extent)."""

    def __init__(self, *, recycles: bool = False, fresh_is_zero: bool = True) -> None:
        self.device = Device("host", "host", "fake")
        self.page_size_bytes = 4096
        self.fresh_is_zero = fresh_is_zero
        self.recycles_across_tenants = recycles
        self.context_bytes: int | None = 0
        self.created: set[int] = set()
        self.calls: list[str] = []
        self.fail: Callable[[str, Extent], None] = lambda call, extent: None

    def create(self, extent: Extent) -> None:
        self._enter("create", extent)
        assert not self.created & set(extent.page_ids)
        self.created |= set(extent.page_ids)

    def destroy(self, extent: Extent) -> None:
        self._enter("destroy", extent)
        assert self.created >= set(extent.page_ids)
        self.created -= set(extent.page_ids)

    def scrub(self, extent: Extent) -> None:
        self._enter("scrub", extent)
        assert self.created >= set(extent.page_ids)

    def placement(self, extent: Extent) -> Placement:
        return Placement(HandleKind.SLAB_FD, 4096, extent.index * 4096)

    def export(self, page_id: int) -> int:
        self._enter("export", Extent(page_id, 1))
        assert page_id in self.created
        return os.open("/dev/null", os.O_RDONLY)

    def memory(self) -> DeviceMemory:
        return DeviceMemory(1 << 30, 1 << 30, len(self.created) * 4096)

    def drop_zone(self, zone: int) -> None:
        self.calls.append("drop_zone")
        assert all(page_id // ZONE_PAGES != zone for page_id in self.created)

    def zone_mark(self, zone: int) -> int | None:
        return None if self.recycles_across_tenants else zone + 1

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        self.calls.append("adopt_zone")

    def inherit(self, extent: Extent) -> None:
        self._enter("inherit", extent)
        assert not self.created & set(extent.page_ids)
        self.created |= set(extent.page_ids)

    def sweeper(self, zone: int) -> Callable[[], None]:
        return lambda: self.calls.append("sweep")

    def close(self) -> None:
        self.created.clear()

    def _enter(self, call: str, extent: Extent) -> None:
        self.calls.append(call)
        self.fail(call, extent)
