"""How much memory vattd's pages really take: not by its word, but by the kernel's or the driver's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from examples.errors import DemoFailed

SLAB_LINK = "/memfd:vattd-slab"
STAT_BLOCK_BYTES = 512  # st_blocks counts these, whatever the file system's own block
SAMPLE_EVERY_S = 0.01


class Counter(Protocol):
    """Counts bytes now. `description` says whose count it is."""

    description: str

    def read_bytes(self) -> int: ...


class SlabCounter:
    """The blocks that the kernel has behind all slabs of a vattd on host memory, lent or not."""

    description = "all slabs, headroom included, by the kernel's count"

    def __init__(self, daemon_pid: int) -> None:
        self._descriptors = Path(f"/proc/{daemon_pid}/fd")

    def read_bytes(self) -> int:
        blocks: dict[int, int] = {}  # by inode: one slab may be open more than once
        try:
            descriptors = list(self._descriptors.iterdir())
        except FileNotFoundError:
            raise DemoFailed("vattd has ended, though nobody told it to") from None
        for descriptor in descriptors:
            with suppress(FileNotFoundError):  # closed since
                if os.readlink(descriptor).startswith(SLAB_LINK):
                    facts = descriptor.stat()
                    blocks[facts.st_ino] = facts.st_blocks
        return sum(blocks.values()) * STAT_BLOCK_BYTES


class DeviceCounter:
    """Device memory taken since the counter was made, as NVML sees it: pages, but the engines' weights too."""

    description = "device memory taken by all, the models' weights included, by NVML"

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._before_bytes = self._used_bytes()

    def read_bytes(self) -> int:
        return self._used_bytes() - self._before_bytes

    def _used_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)


class Peak:
    """The largest of many samples."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.peak_bytes = 0
        self.sample_count = 0

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.counter.read_bytes())
        self.sample_count += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample every 10 ms while the block runs."""
        task = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            if task.done():  # it cannot read any more: say why
                task.result()
            task.cancel()

    async def _watch(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_EVERY_S)
