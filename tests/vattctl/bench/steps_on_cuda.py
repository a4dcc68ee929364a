"""Steps on the simulated GPU: torch here has no CUDA, so that tensors are the CPU's by their word."""

from __future__ import annotations

import json
import sys

import torch

from vattctl.bench.steps import measure_steps
from vattention import Session, kvcache
from vattention.vmm.cuda_call import call
from vattention.vmm.cuda_event import ContextFence


def main() -> None:
    kvcache.torch_device = lambda device: torch.device("cpu")  # type: ignore[attr-defined]
    kvcache.default_fence = lambda device: ContextFence(0)  # type: ignore[attr-defined]
    call("cuInit", 0)
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", 0))
    with Session.connect("bench", socket_dir=sys.argv[1]) as session:
        steps = measure_steps(session, 128, 0.0, lambda done: None)
    print(json.dumps({line.way.name: line.mapped_pages_a_step for line in steps.lines}))


if __name__ == "__main__":
    main()
