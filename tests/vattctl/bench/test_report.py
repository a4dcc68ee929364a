"""What a bench says, in its three forms, and what it never says."""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Vattd, run_command
from vatt.errors import VattError
from vattctl.bench.plan import Part, make_plan
from vattctl.bench.plot import plot
from vattctl.bench.render import markdown, render
from vattctl.bench.report import Report
from vattctl.bench.run import run
from vattctl.output import as_json, show

HOME = "/home/somebodys-secret-home"


@cache
def report() -> Report:
    """A whole bench of host memory, by somebody; of each part as little as there can be."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HOME": HOME, "USER": "somebody", "LOGNAME": "somebody"}.items():
            patch.setenv(name, value)
        plan = make_plan(
            "host", page_size_bytes=None, memory_bytes=4 << 20, parts=set(Part), seconds=dict.fromkeys(Part, 0.0)
        )
        return run(plan, lambda part, done: None, raise_it)


def raise_it(part: Part, error: VattError) -> None:
    raise error


@cache
def said(form: str) -> str:
    if form == "markdown":
        return markdown(report())
    if form == "json":
        return as_json(report().to_plain())
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        show(render(report()))
    return out.getvalue()


def plain() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(said("json"))
    return told


@pytest.mark.parametrize("form", ["table", "markdown", "json"])
def test_nothing_names_a_host_a_user_a_path_or_a_process(form: str) -> None:
    text = said(form).replace("vm.max_map_count", "")  # where the host is called vm
    private = {socket.gethostname(), getpass.getuser(), HOME, "somebody", str(Path.home()), os.getcwd(), "/tmp", "/run"}
    for words in private:
        assert not re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text), f"{words!r} is in it"
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-", text), "a UUID is in it"
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", text), "an IP address is in it"
    assert not re.search(r"\bpid\b", text)
    assert "\x1b" not in text


def test_a_table_fits_80_columns() -> None:
    assert max(map(len, said("table").splitlines())) <= 80


def test_every_number_is_finite_and_percentiles_are_in_order() -> None:
    summaries = list(find_summaries(plain()))
    assert len(summaries) > 20
    for summary in summaries:
        assert all(math.isfinite(value) and value >= 0 for value in summary.values())
        names = ("least_us", "p10_us", "median_us", "p90_us", "p99_us", "most_us")
        ranks = [summary[name] for name in names]
        assert ranks == sorted(ranks)
        assert summary["least_us"] <= summary["first_half_median_us"] <= summary["most_us"]


def find_summaries(value: Any) -> Iterator[dict[str, float]]:
    if isinstance(value, dict):
        if "median_us" in value:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from find_summaries(item)


def test_json_has_one_shape_that_programs_can_rely_on() -> None:
    told = plain()
    assert told["schema"] == "vattd-bench/1"
    assert set(told) == {
        "schema",
        "environment",
        "settings",
        "pool",
        "overheads",
        "calls",
        "leases",
        "steps",
        "published",
        "left_out",
    }
    assert {"vattd_version", "vattd_commit", "device_name", "kernel", "cpu_model", "python", "packages"} <= set(
        told["environment"]
    )
    assert told["settings"]["page_counts"] == [1, 16, 64]
    assert told["settings"]["memory_bytes"] == 64 * (64 << 10)
    for line in [*told["calls"], *told["leases"]["lines"]]:
        assert set(line) == {"phase", "call", "page_count", "call_us", "round_us", "page_us", "calls_a_round"}
        assert line["page_us"] == pytest.approx(line["round_us"]["median_us"] / line["page_count"])
    assert [line["way"] for line in told["steps"]["lines"]] == ["idle", "ahead", "in_step"]
    assert told["steps"]["lines"][0]["mapped_pages_a_step"] == 0
    assert told["steps"]["lines"][2]["mapped_pages_a_step"] == pytest.approx(told["steps"]["slots"] / 16, rel=0.1)
    assert told["pool"]["is_private"] is True
    assert told["pool"]["created_pages"] == 0, "leases were of pages that were there"
    assert told["left_out"] == {}
    for source in told["published"]:
        assert source["reference"]
        assert source["hardware"]


def test_a_report_names_its_baselines_and_says_whose_they_are() -> None:
    for form in ("table", "markdown"):
        text = " ".join(said(form).split())
        assert "arXiv 2405.04437v3, table 3" in text
        assert "github.com/ovg-project/kvcached" in text
        assert "theirs are of other machines" in text.lower()
        assert "no ratios" in text, "host memory and a GPU are two things"


def test_markdown_tables_have_a_cell_in_every_column() -> None:
    rows: list[str] = []
    for line in [*said("markdown").splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            assert len({row.count("|") for row in rows}) == 1, rows
            assert re.fullmatch(r"\|( -{3}:? \|)+", rows[1])
            rows = []


def test_a_picture_is_drawn_of_all_parts_or_of_those_that_were_measured(tmp_path: Path) -> None:
    some = dataclasses.replace(report(), leases=None, steps=None)
    for number, one in enumerate((report(), some, dataclasses.replace(some, calls=[]))):
        picture = tmp_path / f"{number}.png"
        plot(picture, one)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_the_table_and_no_escape_codes_into_a_pipe() -> None:
    arguments = ["--quick", "--gpu", "host", "--memory", "1MiB", "--only", "calls"]
    done = run_command(["vattctl", "bench", *arguments], {"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "device        host memory"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout


def test_only_what_was_asked_for_is_measured() -> None:
    arguments = ["--quick", "--gpu", "host", "--memory", "256KiB", "--only", "steps", "-o", "json"]
    told = json.loads(run_command(["vattctl", "bench", *arguments]).stdout)
    assert told["calls"] == []
    assert told["leases"] is None
    assert told["steps"] is None
    assert told["left_out"] == {
        "steps": {"words": "they need 8 pages at least: give more --memory", "is_failure": False}
    }


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--gpu", "0"], 1, "no NVIDIA driver"),
        (["--gpu", "cuda"], 1, "not a device: 'cuda'"),
        (["--gpu", "host", "--memory", "4KiB"], 1, "less than a page, which has 64.0 KiB here"),
        (["--gpu", "host", "--page-size", "3000"], 1, "must be a power of two"),
        (["--memory", "lots"], 2, "'lots' is not a size: write for example 8GiB"),
        (["--only", "nothing"], 2, "is not one of 'calls', 'leases', 'steps'"),
        (["--markdown", "-o", "json"], 2, "leave one out"),
        (["--attach", "--page-size", "64KiB"], 2, "with --attach it is that of the vattd that runs"),
        (["--attach", "--tenant", "A B"], 2, "is not a tenant's name"),
        (["--attach", "--socket-dir", "/nonexistent"], 3, "start one with `vattd start --socket-dir /nonexistent`"),
        (["--plot", "/nonexistent/bench.png"], 1, "there is no folder /nonexistent"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once_with_what_to_type(
    arguments: list[str], status: int, words: str
) -> None:
    done = run_command(["vattctl", "bench", *arguments], {"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (status, "")
    assert words in " ".join(done.stderr.split())


def test_a_vattd_that_died_is_one_to_start_where_it_was() -> None:
    with Vattd("--pool-max", "4MiB") as vattd:
        vattd.stop(signal.SIGKILL)
        done = run_command(["vattctl", "bench", "--attach", "--quick", "--socket-dir", str(vattd.socket_dir)])
        assert done.returncode == 3
        assert f"`vattd start --gpu host --socket-dir {vattd.socket_dir}`" in done.stderr


def test_the_vattd_that_runs_lends_with_attach_and_has_everything_back() -> None:
    with Vattd("--pool-max", "4MiB") as vattd:
        arguments = ["--quick", "--attach", "--only", "leases", "--socket-dir", str(vattd.socket_dir)]
        done = run_command(["tests.vattctl.bench.short", "bench", *arguments, "-o", "json"])
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["pool"]["max_bytes"] == 4 << 20
        assert told["pool"]["other_sessions"] == 0
        status = vattd.status()
        assert [session.tenant for session in status.sessions] == []
        assert vattd.pages()["leased"] == 0
