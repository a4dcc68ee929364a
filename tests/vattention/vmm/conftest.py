"""One rig a test, for every page size of the device under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vattention.vmm.rig import KIB, MIB, ON_CUDA, ON_HUGE_PAGES, Rig

PAGE_SIZES_BYTES = (
    [2 * MIB, 4 * MIB] if ON_CUDA or ON_HUGE_PAGES else [4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 2 * MIB]
)


@pytest.fixture(params=PAGE_SIZES_BYTES, ids=lambda size_bytes: f"{size_bytes // KIB}K")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig.open(request.param)
    yield rig
    rig.close()
