"""Dropping the references to GPU pages: the one step that nothing can undo."""

from __future__ import annotations

from vatt.errors import DeviceLost, DriverError
from vatt.pages import Extent, extents_of
from vattention.vmm.cuda_call import call
from vattention.vmm.driver import NotReleased


def release_pages(handles: dict[int, int], extent: Extent) -> None:
    """Release the handle of each page and forget it. One that the driver refuses to release stays, and does not keep
    the others: raises NotReleased in the end. A lost device refuses all that follows: raises DeviceLost at once."""
    kept: list[int] = []
    refusal: DriverError | None = None
    for page_id in extent.page_ids:
        try:
            call("cuMemRelease", handles[page_id])
        except DeviceLost:
            raise
        except DriverError as error:
            kept.append(page_id)
            refusal = refusal or error
        else:
            del handles[page_id]
    if refusal is not None:
        raise NotReleased(extents_of(kept), refusal) from refusal
