"""`vattctl doctor` as it is typed: whole runs, on this machine and on simulated ones."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.cudasim import World
from tests.daemon import Vattd, run_command
from tests.vattctl.command import on_a_terminal, vattctl
from tests.vattctl.doctor_facts import HEALTHY, but, gpu
from vattctl.doctor.collect import collect
from vattctl.doctor.command import doctor
from vattctl.doctor.examine import examine
from vattctl.doctor.facts import Is
from vattctl.doctor.finding import Finding, State
from vattctl.doctor.render import render, to_plain

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_command(["vattctl", "doctor", *arguments], {"COLUMNS": "80", **(env or {})})


def states(result: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], str]:
    """By name and subject."""
    said: dict[str, Any] = json.loads(result.stdout)
    return {(one["name"], one["subject"]): one["state"] for one in said["findings"]}


def printed(findings: list[Finding], width: int = 80) -> str:
    file = StringIO()
    Console(width=width, file=file, highlight=False).print(render(findings))
    return file.getvalue()


def test_on_this_machine_nothing_that_vattd_needs_is_broken() -> None:
    with Vattd("--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0") as vattd:
        result = vattctl(vattd, "doctor", "-o", "json")
        found = states(result)
        of_vattd = {name: state for (name, subject), state in found.items() if subject.startswith("host in ")}
        assert of_vattd.pop("vattd-files") in ("ok", "warning")  # as the machine has them
        assert of_vattd == dict.fromkeys(["vattd", "vattd-version", "clock", "metrics"], "ok")
        for name in ("python", "packages", "pidfd", "memfd", "address-space"):
            assert found[(name, "")] == "ok"
        said = json.loads(result.stdout)
        assert said["is_broken"] == (result.returncode == 1)
        table = vattctl(vattd, "doctor")
        assert table.returncode == result.returncode
        assert f"serves, pid {vattd.pid}, no sessions" in " ".join(table.stdout.split())
        assert table.stderr == ""


def test_without_a_vattd_it_is_no_error_and_says_how_to_start_one() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        place = ["--socket-dir", str(vattd.socket_dir)]
        assert vattd.stop() == 0
        before = states(run("-o", "json", *place))
        assert before[("vattd", "")] == "note"
        vattd.start()
        vattd.stop(signal.SIGKILL)
        result = run(*place)
        assert "nobody listens" in " ".join(result.stdout.split())
        assert f"vattd start --gpu host --socket-dir {vattd.socket_dir}" in result.stdout


def test_a_gpu_on_which_all_is_well_and_one_on_which_nothing_is() -> None:
    with World(devices=2) as world:
        well = states(run("-o", "json", env=world.env()))
        for name in ("vmm", "fd-export", "mps", "compute-mode", "mig", "gpu-memory"):
            assert (well[(name, "GPU 0")], well[(name, "GPU 1")]) == ("ok", "ok")
        assert (well[("driver", "")], well[("nvml", "")]) == ("ok", "ok")
        env = world.env(mps=True, attributes={102: 0, 103: 0, 20: 3}, mig_devices=0)
        result = run("-o", "json", env=env)
        assert result.returncode == 1
        ill = states(result)
        for name in ("vmm", "fd-export", "mps", "compute-mode", "mig"):
            assert ill[(name, "GPU 0")] == "broken"
        table = run(env=env)
        assert table.returncode == 1
        assert "  fix export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)" in table.stdout.splitlines()
        assert f"  fix sudo nvidia-smi -i GPU-{world.uuids[1]} -c DEFAULT" in table.stdout.splitlines()
        assert world.refused() == 0


def test_a_vattd_on_a_gpu_knows_whose_memory_is_whose() -> None:
    with World() as world, Vattd("--pool-min", "512MiB", device="0", env=world.env()) as vattd:
        while vattd.pages().get("unbacked", 0) * 2 > 512:  # pages of 2 MiB are made in the background
            assert vattd.process.poll() is None
        result = vattctl(vattd, "doctor", "-o", "json", env=world.env())
        [memory] = [one for one in json.loads(result.stdout)["findings"] if one["name"] == "gpu-memory"]
        assert memory["state"] == "ok", memory
        assert "vattd's pages take" in memory["what"]


def test_all_of_it_fits_80_columns_and_no_command_is_cut() -> None:
    command = "x" * 70
    findings = [*examine(HEALTHY), Finding("long-name-of-a-check", State.BROKEN, "words " * 40, (command,), "GPU 0")]
    lines = printed(findings).splitlines()
    assert max(map(len, lines)) <= 80
    assert f"  fix {command}" in lines
    piped = run().stdout.splitlines()
    assert max(map(len, piped)) <= 80
    assert piped == [line.rstrip() for line in piped]


def test_a_command_of_several_lines_is_one_for_a_shell() -> None:
    command = "echo start --replace --detach --gpu host --socket-dir /run/user/1000/vattd --metrics-address 127.0.0.1:0"
    lines = printed([Finding("metrics", State.NOTE, "off", (f"{command}   # and its other options",))]).splitlines()
    assert max(map(len, lines)) <= 80
    script = "\n".join(lines[1:-2]).removeprefix("  fix ")
    assert len(script.splitlines()) > 1
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "echo " + ran.stdout == command + "\n"


def test_what_is_the_same_of_several_gpus_is_said_once_for_people_and_each_for_programs() -> None:
    [one] = HEALTHY.cuda.gpus
    many = [replace(one, ordinal=number) for number in range(8)]
    findings = examine(but(HEALTHY, cuda={"gpus": many}))
    table = printed(findings, width=200)
    assert "GPU 0, GPU 1, GPU 2, GPU 3, GPU 4 and 3 more: virtual memory management" in table
    subjects = [row["subject"] for row in to_plain(findings, "0.1.0")["findings"] if row["name"] == "vmm"]
    assert subjects == [f"GPU {number}" for number in range(8)]


@pytest.mark.parametrize(
    ("change", "words"),
    [({}, "nothing is broken, "), (gpu(has_vmm=False, uses_mps=Is.YES), "1 broken, 1 warning, ")],
    ids=["well", "ill"],
)
def test_the_last_line_counts(change: dict[str, Any], words: str) -> None:
    assert printed(examine(but(HEALTHY, **change))).splitlines()[-1].startswith(words)


def test_colours_are_for_terminals_and_for_who_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert "\x1b" not in vattctl(vattd, "doctor").stdout
        for no_colour in (False, True):
            if no_colour:
                monkeypatch.setenv("NO_COLOR", "1")
            else:
                monkeypatch.delenv("NO_COLOR", raising=False)
            with on_a_terminal(vattd, "doctor") as terminal:
                terminal.read_until(" ok\x1b" if not no_colour else " ok\r\n")
                assert bool(COLOUR.search(terminal.seen)) is not no_colour


def test_a_wedged_driver_is_told_of_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vattctl.doctor.collect.collect", partial(collect, driver_within_s=1.0))
    with World() as world:
        for name, value in world.env().items():
            monkeypatch.setenv(name, value)
        world.faults.stall("cuInit")
        result = CliRunner().invoke(doctor, ["-o", "json", "--socket-dir", "/nowhere"])
        assert result.exit_code == 1
        found = {one["name"]: one for one in json.loads(result.stdout)["findings"]}
        assert found["driver"]["state"] == "broken"
        assert "hangs: no answer within 1 s" in found["driver"]["what"]
        assert "sudo reboot" in found["driver"]["fixes"]
