"""A machine without a GPU: everything but CUDA works, and CUDA says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vatt.errors import DeviceLost, DeviceNotFound, DriverError, InvalidRequest, OutOfMemory
from vattention.vmm import cuda_call, open_mapping, open_physical
from vattention.vmm.cuda_errors import error_of

ROOT = Path(__file__).parents[3]


def run_without_gpu(code: str) -> str:
    """In a process that sees no GPU even where there is one."""
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return child.stdout


def test_opening_a_gpu_names_the_way_out() -> None:
    printed = run_without_gpu(
        "from vattention.vmm import open_mapping, open_physical\n"
        "from vatt.errors import DeviceNotFound\n"
        "for open in (lambda: open_physical('0'), lambda: open_mapping('cuda', 'GPU-0', 1 << 21)):\n"
        "    try: open()\n"
        "    except DeviceNotFound as failure: print(failure)\n"
    )
    assert printed.count("vattd start --gpu host") == 2


def test_the_default_device_is_the_host() -> None:
    assert run_without_gpu("import vattention.vmm as vmm; print(vmm.default_device())").strip() == "host"


def test_the_host_drivers_import_neither_cuda_nor_torch() -> None:
    printed = run_without_gpu(
        "import sys, vattention.vmm as vmm\n"
        "vmm.open_physical('host').close(); vmm.open_mapping('host', 'host', 4096).close()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'cuda', 'pynvml', 'torch', 'numpy', 'grpc'}))"
    )
    assert printed.strip() == "[]"


@pytest.mark.parametrize("spec", ["", "gpu", "-1", "cuda:0", "0x1"])
def test_what_is_no_device_is_refused(spec: str) -> None:
    with pytest.raises(InvalidRequest, match="nvidia-smi -L"):
        open_physical(spec)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="backend"):
        open_mapping("rocm", "GPU-0", 1 << 21)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", OutOfMemory),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLost),
        ("CUDA_ERROR_LAUNCH_FAILED", DeviceLost),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", DeviceLost),
        ("CUDA_ERROR_UNKNOWN", DeviceLost),
        ("CUDA_ERROR_INVALID_VALUE", DriverError),
        ("CUDA_ERROR_NOT_PERMITTED", DriverError),
    ],
)
def test_every_code_becomes_the_error_that_says_what_to_do(code: str, kind: type[DriverError]) -> None:
    error = error_of("cuMemMap", code)
    assert type(error) is kind
    assert str(error).startswith(f"cuMemMap: {code}")
    assert isinstance(error, DriverError)
    assert (error.call, error.code) == ("cuMemMap", code)


@pytest.mark.parametrize("code", ["CUDA_ERROR_DEINITIALIZED", "CUDA_ERROR_ILLEGAL_ADDRESS"])
def test_closing_down_ignores_a_driver_that_is_gone(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def fail(name: str, *args: object) -> None:
        raise error_of(name, code)

    monkeypatch.setattr(cuda_call, "call", fail)
    cuda_call.call_at_close("cuMemRelease", 1)


def test_closing_down_does_not_hide_a_refused_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *args: object) -> None:
        raise error_of(name, "CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(cuda_call, "call", fail)
    with pytest.raises(DriverError, match="bug"):
        cuda_call.call_at_close("cuMemRelease", 1)


def test_no_gpu_is_a_device_that_was_not_found() -> None:
    assert isinstance(error_of("cuInit", "CUDA_ERROR_NO_DEVICE"), DeviceNotFound)
