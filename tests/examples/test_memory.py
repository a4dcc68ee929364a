"""The kernel's own count of slabs."""

from __future__ import annotations

import os

import pytest

from examples.errors import DemoFailed
from examples.memory import Peak, SlabCounter

MIB = 1 << 20


def test_memory_is_counted_where_it_is_and_once() -> None:
    counter = SlabCounter(os.getpid())
    before_bytes = counter.read_bytes()  # another test's, if that one failed and its frames are still there
    slab = os.memfd_create("vattd-slab-test", os.MFD_CLOEXEC)
    again = os.dup(slab)
    other = os.memfd_create("something-else", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(other, 0, MIB)
        os.truncate(slab, 64 * MIB)  # sparse: nothing behind it
        assert counter.read_bytes() == before_bytes
        os.posix_fallocate(slab, 8 * MIB, 2 * MIB)
        assert counter.read_bytes() == before_bytes + 2 * MIB
    finally:
        for descriptor in (slab, again, other):
            os.close(descriptor)
    assert counter.read_bytes() == before_bytes


def test_the_peak_stays_when_memory_goes() -> None:
    class Counter:
        description = "a list"

        def __init__(self) -> None:
            self.left = [3, 9, 2]

        def read_bytes(self) -> int:
            return self.left.pop(0)

    peak = Peak(Counter())
    for _ in range(3):
        peak.sample()
    assert (peak.peak_bytes, peak.sample_count) == (9, 3)


def test_a_daemon_that_has_gone_is_an_error() -> None:
    with pytest.raises(DemoFailed, match="vattd has ended"):
        SlabCounter(2**22 + 1).read_bytes()  # above the largest pid
