"""What the two commands have in common."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from vatt.command_line import MOST_S, Time, named_device
from vatt.errors import DeviceNotFound, DriverError, InvalidRequest


def by_number(text: str) -> str:
    return "GPU-1234" if text == "0" else text


def failing(error: Exception) -> str:
    def fail(text: str) -> str:
        raise error

    with pytest.raises(DeviceNotFound) as found:
        named_device("0", fail)
    return str(found.value)


def test_a_device_is_named_as_its_vattd_calls_it() -> None:
    assert named_device("host", by_number) == "host"
    assert named_device("0", by_number) == "GPU-1234"
    assert named_device("MIG-1", by_number) == "MIG-1"


@pytest.mark.parametrize("text", ["", "gpu", "-1", "0x0", "cuda:0"])
def test_what_names_no_device_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.UsageError, match="write host, a GPU's number or its UUID"):
        named_device(text, by_number)


@pytest.mark.parametrize(
    "error",
    [
        DeviceNotFound("libcuda.so.1 was not found; for host memory, `vattd start --gpu host`"),
        DriverError("libcuda.so.1 was not found"),
    ],
)
def test_a_number_that_no_driver_can_turn_into_a_uuid_is_told_apart_from_a_vattd_that_does_not_run(
    error: Exception,
) -> None:
    said = failing(error)
    assert "--gpu 0: there is no usable GPU driver here (libcuda.so.1 was not found)" in said
    assert "write --gpu host, or the UUID" in said
    assert "vattd start" not in said


def test_a_gpu_that_a_working_driver_does_not_have_is_told_in_its_own_words() -> None:
    words = "no GPU 0: this process sees 2 (see CUDA_VISIBLE_DEVICES)"
    assert failing(DeviceNotFound(words)) == words


def test_a_time_is_seconds_within_its_bounds() -> None:
    assert Time().convert("2h", None, None) == 7200.0
    assert Time().convert("0", None, None) == 0.0
    with pytest.raises(click.BadParameter, match="'0' is not 1 s to 10 years: write for example 30s"):
        Time(least_s=1.0).convert("0", None, None)
    with pytest.raises(click.BadParameter, match="to 10 years"):
        Time().convert(f"{MOST_S + 1:.0f}", None, None)
    with pytest.raises(click.BadParameter, match=r"not a length of time.*, or forever"):
        Time(hint=", or forever").convert("soon", None, None)


def test_an_engine_needs_no_click() -> None:
    code = "import sys, vattention, vatt.sockets; sys.exit('click' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_invalid_request_of_a_number_is_not_taken_for_a_missing_driver() -> None:
    def refuse(text: str) -> str:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest, match="no"):
        named_device("0", refuse)
