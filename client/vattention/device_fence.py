"""How the library knows that the device has stopped using pages: by a proof, taken when they are let go.

Letting go and unmapping are two moments. Work that was submitted before may still read a page when its request is over,
and unmapping it then is a fault of the device that no process survives. So a fence marks the moment in what the device
has been given to do, without waiting; whoever unmaps asks the proof first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Proof(Protocol):
    """Whether the device has stopped using what was let go when the proof was taken."""

    def done(self) -> bool:
        """Never blocks. Once true, always true. False also where only waiting can tell, so do not poll for ever."""

    def wait(self) -> None:
        """Returns when it is done. Raises if it cannot tell, and may be called again then."""


class _Done:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


# The proof of what the device has stopped using already.
DONE: Proof = _Done()

# Called when pages are let go, or later, from any thread: so it names its streams itself. None: the device has stopped
# using them already, so a function that blocks until then and returns nothing is a fence too. Raises if it cannot tell.
Fence = Callable[[], Proof | None]


def default_fence(device: torch.device) -> Fence:
    """On CUDA, a proof covers all that this process has submitted to the device, in whatever stream. An engine that
    knows its streams does better with `stream_fence`, and one that captures CUDA graphs while requests finish must.

    On the host, torch's operators are done when they return.
    """
    if device.type != "cuda":
        return _nothing
    from vattention.vmm.cuda_event import ContextFence

    return ContextFence(torch.cuda.current_device() if device.index is None else device.index)


def _nothing() -> None:
    pass
