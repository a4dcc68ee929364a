"""Replays through the real library, on small parts of the trace; and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.daemon import run_command
from vatt.errors import InvalidRequest, VattError
from vattctl.main import vattctl
from vattctl.replay import command
from vattctl.replay.figures import Outcome, SchemeFigures
from vattctl.replay.models import MODELS
from vattctl.replay.run import Settings, replay
from vattctl.replay.trace import Request, Trace, read_trace
from vattention import Layout
from vattention.config import LAYOUTS
from vattention.vmm.limits import MappingBudget

GIB = 1 << 30


def settings(layout: Layout, *, speed: float, budget_gib: float = 6, model: str = "llama-3-8b") -> Settings:
    return Settings(
        MODELS[model], layout, 2 << 20, int(budget_gib * GIB), speed, step_s=0.025, slot_count=128, context_length=8192
    )


@cache
def saturated(layout: Layout) -> Outcome:
    return replay(read_trace("azure_conv").first(250), settings(layout, speed=0))


@cache
def paced() -> Outcome:
    return replay(read_trace("azure_conv").first(300), settings(Layout.FUSED, speed=1, budget_gib=20))


def named(outcome: Outcome, name: str) -> SchemeFigures:
    [figures] = [figures for figures in outcome.schemes if figures.name == name]
    return figures


def test_a_full_fused_cache_runs_as_many_requests_as_small_blocks_do() -> None:
    outcome = saturated(Layout.FUSED)
    ours, paged16 = outcome.schemes[0], named(outcome, "paged16")
    assert paged16.preemption_count > 0, "the budget was never the limit"
    assert ours.running_mean >= 0.99 * paged16.running_mean
    assert ours.waste_fraction < named(outcome, "paged256").waste_fraction / 4


@pytest.mark.parametrize("layout", [Layout(name) for name in LAYOUTS])
def test_every_layout_wastes_less_than_static_slots_and_stays_far_from_the_kernels_limit(layout: Layout) -> None:
    outcome = saturated(layout)
    ours, static = outcome.schemes[0], named(outcome, "static 8K")
    assert ours.name == f"vattention {layout.value}"
    assert ours.waste_fraction < static.waste_fraction / 2
    assert ours.running_mean > 2 * static.running_mean
    assert outcome.maps.most_kernel_mappings < MappingBudget().limit / 4
    assert outcome.maps.most_kernel_mappings <= outcome.maps.pool_pages


def test_where_the_pool_is_not_full_no_step_waits_for_an_unmap_and_most_maps_are_avoided() -> None:
    maps = paced().maps
    assert maps.unmapped_on_request_path_pages == 0
    assert maps.avoided_fraction > 0.6  # on the whole hour it is more: here every page is new at first
    assert maps.most_held_over_need_fraction <= 0.15
    assert maps.unmapped_pages <= maps.mapped_pages


def test_what_is_held_is_what_tokens_fill_or_more_and_never_over_the_budget() -> None:
    for outcome, budget_gib in ((saturated(Layout.FUSED), 6), (paced(), 20)):
        timeline = outcome.timeline
        assert (timeline.running_bytes >= timeline.token_bytes).all()
        assert (timeline.running_bytes + timeline.kept_bytes <= budget_gib * GIB).all()


def test_a_replay_gives_the_same_figures_every_time() -> None:
    trace = read_trace("azure_conv").first(60)
    first, second = (replay(trace, settings(Layout.FUSED, speed=1)) for _ in range(2))
    assert first.schemes == second.schemes
    assert first.maps.mapped_pages == second.maps.mapped_pages
    assert first.maps.most_held_over_need_pages == second.maps.most_held_over_need_pages


def test_kept_pages_are_let_go_in_virtual_time() -> None:
    trace = Trace("two", (Request(0.0, 1600, 4), Request(300.0, 1600, 4)))
    maps = replay(trace, settings(Layout.FUSED, speed=1)).maps
    assert maps.mapped_pages == maps.needed_pages > 200, "after five quiet minutes nothing is left to take over"


def test_a_scheme_that_cannot_hold_the_largest_request_is_left_out() -> None:
    trace = Trace("one", (Request(0.0, 1000, 4),))
    outcome = replay(trace, settings(Layout.FUSED, speed=0, budget_gib=0.5))
    assert outcome.too_small == ["static 8K", "static 32K"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = run_command(["vattctl", "replay", *arguments])
    return result.returncode, result.stdout, result.stderr


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    trace, picture = tmp_path / "mine.csv", tmp_path / "mine.png"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,9000,5\n1,100,80\n")
    arguments = [str(trace), "--model", "phi-2", "--budget", "5GiB", "-o", "json", "--plot", str(picture)]
    status, output, errors = run(*arguments)
    assert status == 0, errors
    answer = json.loads(output)
    assert (answer["trace"], answer["request_count"], answer["cut_request_count"]) == ("mine", 2, 1)
    assert answer["token_bytes"] == 320 << 10
    assert answer["scale_factor"] == 512
    assert [scheme["name"] for scheme in answer["schemes"]][:2] == ["vattention fused", "static 8K"]
    assert answer["maps"]["unmapped_on_request_path_pages"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_stands_for_what(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,50,5\n")
    status, output, errors = run(str(trace), "--layout", "megacache", "--model", "qwen2-0.5b")
    assert status == 0, errors
    assert "pages of 8.00 KiB stand for 2.00 MiB" in output
    assert [line.split()[0] for line in output.splitlines() if "%" in line][:2] == ["vattention", "static"]
    assert "maps avoided" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["azure_conv", "--page-size", "5000"], "multiple of 4.00 KiB"),
        (["azure_conv", "--budget", "16MiB", "--max-requests", "5"], "a larger --budget"),
        (["azure_conv", "--plot", "no/such/folder/a.png"], "no folder"),
    ],
)
def test_what_cannot_be_replayed_is_said_with_what_to_do(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(vattctl, ["replay", *arguments])
    assert isinstance(result.exception, InvalidRequest)
    assert message in str(result.exception)


@pytest.mark.parametrize(("option", "value"), [("--budget", "much"), ("--speed", "-1"), ("--layout", "round")])
def test_an_option_that_makes_no_sense_is_a_usage_error(option: str, value: str) -> None:
    result = CliRunner().invoke(vattctl, ["replay", "azure_conv", option, value])
    assert result.exit_code == 2
    assert option in result.output


def test_a_missing_trace_is_refused() -> None:
    status, output, errors = run("nowhere.csv")
    assert (status, output) == (1, "")
    assert "give a csv file, or one of azure_conv, azure_code" in errors


@pytest.mark.parametrize("missing", ["torch", "matplotlib"])
def test_a_package_that_is_not_there_is_said_before_the_replay(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", without(missing))
    result = CliRunner().invoke(vattctl, ["replay", "azure_conv", "--plot", "a.png"])
    assert isinstance(result.exception, VattError)
    assert f"pip install {missing}" in str(result.exception)


def without(missing: str) -> Callable[[str], object]:
    return lambda name: None if name == missing else find_spec(name)
