"""Zeroing GPU pages that nobody maps. The one thing for which vattd needs a CUDA context."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress

from vatt.errors import DeviceLost, DriverError
from vattention.vmm.cuda_call import call, call_at_close
from vattention.vmm.cuda_map import map_handles, read_write_access
from vattention.vmm.driver import Device

# Access and unmapping cost the same for many pages as for one, so pages are zeroed in batches of up to this many.
BATCH_PAGES = 64


class CudaScrubber:
    """A context and one scratch address range, into which pages are mapped for as long as they are being zeroed.

    Made at the first scrub, since a context takes hundreds of MB of the device until it is closed. The primary context
    is used because it is the one that costs nothing if somebody else in the process has it already.
    """

    def __init__(self, device: Device, page_size_bytes: int) -> None:
        self._page_size_bytes = page_size_bytes
        self._mapped_bytes = 0
        self._access = read_write_access(device)
        size_bytes = BATCH_PAGES * page_size_bytes
        with ExitStack() as undo:
            self._context = call("cuDevicePrimaryCtxRetain", device.ordinal)
            undo.callback(call_at_close, "cuDevicePrimaryCtxRelease", device.ordinal)
            self._scratch = int(call("cuMemAddressReserve", size_bytes, 0, 0, 0))
            undo.callback(self._free_scratch, size_bytes)
            self._undo = undo.pop_all()

    def zero(self, handles: Sequence[int]) -> None:
        """Fill each page with zeros. When it returns, the device has done it."""
        with ExitStack() as undo:
            # The current context belongs to the thread, which is not ours to keep.
            undo.callback(call, "cuCtxSetCurrent", call("cuCtxGetCurrent"))
            call("cuCtxSetCurrent", self._context)
            for first in range(0, len(handles), BATCH_PAGES):
                self._zero_batch(handles[first : first + BATCH_PAGES])

    def tidy(self) -> None:
        """Unmap what is still mapped, which is nothing unless the driver refused to do that before."""
        if self._mapped_bytes:
            call("cuMemUnmap", self._scratch, self._mapped_bytes)
            self._mapped_bytes = 0

    def close(self) -> None:
        with self._undo, suppress(DeviceLost):
            self.tidy()

    def _free_scratch(self, size_bytes: int) -> None:
        if not self._mapped_bytes:
            call_at_close("cuMemAddressFree", self._scratch, size_bytes)

    def _zero_batch(self, handles: Sequence[int]) -> None:
        size_bytes = len(handles) * self._page_size_bytes
        self.tidy()
        with ExitStack() as undo:
            map_handles(self._scratch, handles, self._page_size_bytes, self._access)
            self._mapped_bytes = size_bytes
            undo.callback(self.tidy)
            call("cuMemsetD8", self._scratch, 0, size_bytes)
            # cuMemsetD8 returns before the device has written, and unmapping does not wait for it: the device would
            # fault. So a wait that fails is tried once more; if the device is lost, nothing is under way any more.
            try:
                call("cuCtxSynchronize")
            except DriverError:
                with suppress(DriverError):
                    call("cuCtxSynchronize")
                raise
