"""What `--help` says, and that both commands read what is typed in one way."""

from __future__ import annotations

import pytest

from tests.daemon import Vattd, run_command
from tests.vattctl.command import refused

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def help_of(*command: str) -> str:
    result = run_command([*command, "--help"])
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


@pytest.mark.parametrize("command", ["vattctl", "vattd"])
def test_help_says_what_exit_statuses_mean(command: str) -> None:
    assert "Exit status: 0 done, 1 refused, 2 wrong usage, 3 no vattd answers." in help_of(command)


@pytest.mark.parametrize(
    "command",
    [["vattctl"], ["vattctl", "reserve"], ["vattctl", "drain"], ["vattctl", "evict"], ["vattd", "start"]],
)
def test_help_says_how_a_time_is_written(command: list[str]) -> None:
    assert "A TIME is written 500ms, 30s, 5m, 2h or 7d; a number is seconds." in help_of(*command)


@pytest.mark.parametrize("command", [["vattctl"], ["vattctl", "reserve"], ["vattd", "start"]])
def test_help_says_how_a_size_is_written(command: list[str]) -> None:
    assert "8GiB, 8G and 8gb are the same" in help_of(*command)


def test_help_says_that_a_percentage_becomes_bytes_once() -> None:
    assert "A PERCENT of the pool is turned into bytes once" in help_of("vattctl", "reserve")


@pytest.mark.parametrize(("text", "words"), [("soon", "is not a length of time"), ("4000d", "to 10 years")])
def test_vattd_and_vattctl_refuse_the_same_times(text: str, words: str) -> None:
    for command in (["vattd", "start", "--idle-after", text], ["vattctl", "drain", "--wait", text]):
        result = run_command(command)
        assert result.returncode == 2
        assert words in " ".join(result.stderr.split())


def test_where_no_gpu_driver_works_a_number_names_no_vattd() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        stop = run_command(["vattd", "stop", "--gpu", "0", "--socket-dir", str(vattd.socket_dir)], NO_GPU)
        assert stop.returncode == 1
        said = [" ".join(stop.stderr.split())]
        said += [refused(vattd, verb, "--gpu", "0", env=NO_GPU) for verb in ("status", "tenants", "shrink")]
        for words in said:
            assert "--gpu 0: there is no usable GPU driver here" in words
            assert "write --gpu host, or the UUID" in words
            assert "vattd start" not in words
        assert vattd.process.poll() is None
        assert "write host, a GPU's number or its UUID" in refused(vattd, "shrink", "--gpu", "gpu", status=2)
