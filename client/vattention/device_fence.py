"""How the library knows that the device has stopped using pages: a fence is called before they are unmapped."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Returns when nothing that was started before the call uses the cache any more. Raises if it cannot tell.
Fence = Callable[[], None]


def default_fence(device: torch.device) -> Fence:
    """On CUDA, wait for the calling thread's current stream; an engine with more streams brings its own fence.

    On the host, torch's operators are done when they return.
    """
    if device.type != "cuda":
        return _nothing
    return lambda: torch.cuda.current_stream(device).synchronize()


def _nothing() -> None:
    pass
