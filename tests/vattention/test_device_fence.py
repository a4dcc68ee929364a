"""Fences without a GPU. Those of a GPU: vmm/test_fences_on_cuda.py."""

from __future__ import annotations

import torch

from vattention.device_fence import default_fence


def test_on_the_host_the_device_is_done_when_the_operators_return() -> None:
    fence = default_fence(torch.device("cpu"))
    assert fence() is None
