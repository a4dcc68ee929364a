"""What only the CUDA drivers do. Collected by test_driver_on_cuda.py's child, never by itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vattention.vmm.rig import KIB, MIB, Rig
from vatt.errors import DeviceLost, DeviceNotFound, DriverError, InvalidRequest, OutOfMemory, SystemLimit
from vatt.pages import Extent
from vattention.vmm import (
    cuda_call,
    cuda_map,
    cuda_mapping,
    cuda_physical,
    cuda_release,
    cuda_scrub,
    default_device,
    open_mapping,
    open_physical,
)
from vattention.vmm.cuda_errors import error_of


class Calls:
    """Counts the drivers' calls into libcuda, and lets one of them fail without reaching it."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.fail_name, self.fail_at, self.fail_code = "", 0, ""

    def fail(self, name: str, at: int, code: str = "CUDA_ERROR_NOT_SUPPORTED") -> None:
        """The `at`th call of that name from now on fails."""
        self.count.clear()
        self.fail_name, self.fail_at, self.fail_code = name, at, code

    def __call__(self, name: str, *args: object) -> Any:
        self.count[name] += 1
        if name == self.fail_name and self.count[name] == self.fail_at:
            raise error_of(name, self.fail_code)
        return cuda_call.call(name, *args)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    for module in (cuda_map, cuda_mapping, cuda_physical, cuda_release, cuda_scrub):
        monkeypatch.setattr(module, "call", calls)
    return calls


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig.open(None)
    yield rig
    rig.close()


def test_the_default_page_size_is_the_granularity_and_the_default_device_the_gpu(rig: Rig) -> None:
    assert rig.page == 2 * MIB
    assert default_device() == "0"


def test_a_gpu_is_found_by_its_uuid_in_either_prefix(rig: Rig) -> None:
    uuid = rig.physical.device.uuid
    assert uuid.startswith("GPU-")
    for spec in (uuid, "GPU-" + uuid[4:].upper(), "MIG-" + uuid[4:]):
        found = open_physical(spec)
        assert found.device.ordinal == 0
        found.close()


@pytest.mark.parametrize("spec", ["7", "GPU-00000000-0000-0000-0000-000000000000"])
def test_a_gpu_that_is_not_there_is_not_found(spec: str) -> None:
    with pytest.raises(DeviceNotFound, match="CUDA_VISIBLE_DEVICES"):
        open_physical(spec)


@pytest.mark.parametrize("size_bytes", [0, 64 * KIB, 128 * KIB, 256 * KIB, 3 * MIB])
def test_pages_that_the_driver_cannot_make_are_refused_with_why_and_the_layout_to_use(
    rig: Rig, size_bytes: int
) -> None:
    why = r"smallest allocation is 2097152.*patched kernel driver.*545\.23\.06.*unsafe between processes.*`fused`"
    with pytest.raises(InvalidRequest, match=why):
        open_physical("0", size_bytes)
    with pytest.raises(InvalidRequest, match=why):
        open_mapping("cuda", rig.physical.device.uuid, size_bytes)


def test_any_multiple_of_the_granularity_is_a_page_size() -> None:
    rig = Rig.open(6 * MIB)
    address = rig.map_new([Extent(4, 2), Extent(0, 1)])
    assert address % (2 * MIB) == 0
    rig.paint(address, [4, 5, 0])
    rig.physical.scrub(Extent(5, 1))
    assert rig.painted(address, [4])
    assert rig.is_zero(address + 6 * MIB, 1)
    assert rig.painted(address + 12 * MIB, [0])
    assert rig.mapping.unmap(address + 6 * MIB, 12 * MIB) == [Extent(5, 1), Extent(0, 1)]
    rig.close()


def test_a_run_of_pages_takes_one_set_access_and_one_unmap(rig: Rig, calls: Calls) -> None:
    rig.lend(Extent(0, 8), Extent(20, 8))
    address = rig.mapping.reserve(16 * rig.page)
    calls.count.clear()
    rig.mapping.map(address, [Extent(20, 8), Extent(0, 8)])
    rig.mapping.unmap(address, 16 * rig.page)
    assert calls.count == {"cuMemMap": 16, "cuMemSetAccess": 1, "cuMemUnmap": 1}


def test_a_create_that_fails_half_way_releases_what_it_made(rig: Rig, calls: Calls) -> None:
    calls.fail("cuMemCreate", at=4, code="CUDA_ERROR_OUT_OF_MEMORY")
    free_bytes = rig.physical.memory().free_bytes
    with pytest.raises(OutOfMemory):
        rig.physical.create(Extent(0, 6))
    assert calls.count["cuMemRelease"] == 3
    assert rig.physical.memory().free_bytes == free_bytes
    rig.physical.create(Extent(0, 6))


def test_an_import_that_fails_half_way_releases_what_it_took(rig: Rig, calls: Calls) -> None:
    rig.physical.create(Extent(0, 4))
    calls.fail("cuMemImportFromShareableHandle", at=3)
    with pytest.raises(DriverError, match="cuMemImportFromShareableHandle"):
        rig.share(Extent(0, 4))
    assert calls.count["cuMemRelease"] == 2
    rig.share(Extent(0, 4))


@pytest.mark.parametrize(("name", "at", "unmaps"), [("cuMemMap", 1, 0), ("cuMemMap", 3, 1), ("cuMemSetAccess", 1, 1)])
def test_a_map_that_fails_half_way_unmaps_what_it_mapped(
    rig: Rig, calls: Calls, name: str, at: int, unmaps: int
) -> None:
    rig.lend(Extent(0, 4))
    address = rig.mapping.reserve(4 * rig.page)
    calls.fail(name, at=at)
    with pytest.raises(DriverError, match=name):
        rig.mapping.map(address, [Extent(0, 4)])
    assert calls.count["cuMemUnmap"] == unmaps
    rig.mapping.map(address, [Extent(0, 4)])


@pytest.mark.parametrize(
    "name", ["cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemsetD8", "cuCtxSynchronize"]
)
def test_a_scrub_that_fails_leaves_nothing_mapped_and_can_be_repeated(rig: Rig, calls: Calls, name: str) -> None:
    address = rig.map_new([Extent(0, 2)])
    rig.paint(address, [0, 1])
    calls.fail(name, at=1)
    with pytest.raises(DriverError, match=name):
        rig.physical.scrub(Extent(0, 2))
    rig.physical.scrub(Extent(0, 2))
    assert rig.is_zero(address, 2)


def test_a_scrub_leaves_the_threads_context_as_it_was(rig: Rig) -> None:
    rig.physical.create(Extent(0, 1))
    before = int(cuda_call.call("cuCtxGetCurrent"))
    rig.physical.scrub(Extent(0, 1))
    assert int(cuda_call.call("cuCtxGetCurrent")) == before


def test_pages_are_scrubbed_in_batches(rig: Rig, calls: Calls) -> None:
    rig.physical.create(Extent(0, 70))
    calls.count.clear()
    rig.physical.scrub(Extent(0, 70))
    assert calls.count["cuMemMap"] == 70
    assert calls.count["cuMemsetD8"] == calls.count["cuMemSetAccess"] == calls.count["cuMemUnmap"] == 2


def test_a_sticky_error_is_a_lost_device_and_closing_still_works(rig: Rig, calls: Calls) -> None:
    rig.physical.create(Extent(0, 2))
    calls.fail("cuMemRelease", at=2, code="CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(DeviceLost, match="restart"):
        rig.physical.destroy(Extent(0, 2))
    rig.physical.destroy(Extent(1, 1))  # the one that was not released is still known


def test_no_descriptor_is_exported_past_the_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.physical.create(Extent(0, 1))

    def refuse(fd_count: int) -> None:
        raise SystemLimit("RLIMIT_NOFILE")

    monkeypatch.setattr(cuda_physical, "require_fds", refuse)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SystemLimit):
        rig.physical.export(0)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_memory_is_the_devices_own_count(rig: Rig) -> None:
    before = rig.physical.memory()
    rig.physical.create(Extent(0, 3))
    after = rig.physical.memory()
    assert before.free_bytes - after.free_bytes == 3 * rig.page
    assert after.total_bytes == before.total_bytes


def test_headroom_is_taken_off_what_is_free() -> None:
    driver, roomy = open_physical("0"), open_physical("0", headroom_bytes=32 * MIB)
    assert driver.memory().free_bytes - roomy.memory().free_bytes == 32 * MIB
    driver.close()
    roomy.close()
