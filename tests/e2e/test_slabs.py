"""How the other tests count what is in slabs."""

from __future__ import annotations

import os

from tests.e2e.slabs import PAGE, pages_in_slabs
from tests.e2e.worker import STRAGGLERS_BYTE


def test_strays_are_no_pages_and_all_else_that_is_in_a_slab_is() -> None:
    before = pages_in_slabs([os.getpid()])
    slab = os.memfd_create("vattd-slab")
    os.truncate(slab, 1 << 50)
    os.posix_fallocate(slab, 7 * PAGE, 3 * PAGE)  # nobody has written to them
    os.pwrite(slab, b"an engine's mark", 9 * PAGE)
    assert pages_in_slabs([os.getpid()]) == before + 3
    os.pwrite(slab, STRAGGLERS_BYTE * PAGE, 1 << 40)
    os.pwrite(slab, STRAGGLERS_BYTE * (PAGE // 2 + 5), (1 << 40) + 3 * PAGE)  # killed half way
    assert pages_in_slabs([os.getpid()]) == before + 3
    os.pwrite(slab, b"x" * PAGE, 1 << 41)
    assert pages_in_slabs([os.getpid()]) == before + 4
    os.close(slab)
