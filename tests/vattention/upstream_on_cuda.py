"""The machine of upstream_machine.py on a GPU. Collected by test_upstream_machine.py's child, never by itself.

torch here has no CUDA, and the simulated GPU's memory can be read by the CPU: the tensors say that they are the CPU's,
and all below them, the fence too, is the GPU's. Kernels read what each step wrote until the next one writes, so that
whoever unmaps or reuses a page too early ends this whole process.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.cudasim.kernel import Reads, launch
from tests.vattention.upstream_machine import Case, run_machine
from vattention import kvcache
from vattention.session import Session
from vattention.vmm import device_uuid
from vattention.vmm.cuda_call import call
from vattention.vmm.cuda_event import ContextFence

KERNEL_S = 0.003


def read_for_a_while(rows: Sequence[torch.Tensor]) -> None:
    ranges = [
        Reads(row.data_ptr(), ((len(row) - 1) * row.stride(0) + row[0].numel()) * row.element_size()) for row in rows
    ]
    for first in range(0, len(ranges), 8):
        launch(0, *ranges[first : first + 8], duration_s=KERNEL_S)


def test_no_sequence_of_calls_breaks_the_contract(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    call("cuInit", 0)
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", 0))
    monkeypatch.setattr(kvcache, "torch_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(kvcache, "default_fence", lambda device: ContextFence(0))
    monkeypatch.delenv("VATTENTION_DAEMON", raising=False)
    with Session.connect("probe", device=device_uuid("0")) as session:
        page_size_bytes = session.page_size_bytes
    case = Case(
        page_size_bytes,
        (1, 2) if page_size_bytes < 1 << 20 else (1,),
        use=read_for_a_while,
        rest=lambda: call("cuCtxSynchronize"),
        set_layout=lambda layout: monkeypatch.setenv("VATTENTION_LAYOUT", layout),
    )
    run_machine(case, round(5 * pytestconfig.getoption("--seconds")))
