"""The benchmark of transformers' caches runs, and compares the same work in the same number of steps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner

from benchmarks import transformers_decode
from benchmarks.transformers_decode import KINDS, Cell, Step, cache_of, measured_steps, peak_of_a_process, time_rows
from tests.daemon import Vattd

CELL = Cell(batch=2, tokens=40, context=64, layers=2, heads=2, head_size=16)


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "16MiB", "--page-size", "4096") as vattd:
        yield vattd


def test_all_caches_are_measured_in_as_many_steps(vattd: Vattd) -> None:
    taken = measured_steps(CELL, 3, vattd.socket_dir)
    assert set(taken) == set(KINDS)
    assert [len(steps) for steps in taken.values()] == [3] * len(KINDS)
    assert all(step.passed_ms > 0 for steps in taken.values() for step in steps)


@torch.inference_mode()
def test_all_caches_hold_the_same_and_give_the_same_logits(vattd: Vattd) -> None:
    model = CELL.model()
    logits = []
    for kind in KINDS:
        with cache_of(kind, CELL, model, vattd.socket_dir) as cache:
            assert int(cache.get_seq_length()) == CELL.tokens
            logits.append(model(input_ids=torch.arange(2)[:, None], past_key_values=cache).logits)
    assert all(torch.allclose(logits[0], other, atol=1e-5) for other in logits)
    for other in logits[2:]:  # VattCache: to the last bit
        assert torch.equal(logits[0], other)


def test_ratios_say_how_many_times_as_fast_as_dynamic_each_is() -> None:
    taken = {"dynamic": [Step(8, 6), Step(10, 6), Step(30, 6)], "fused": [Step(2, 3), Step(5, 3), Step(60, 3)]}
    base, own = time_rows(CELL, taken)
    assert base == ["2 x 40", "dynamic", "8.0 ms", "10.0 ms", "6.0 ms", "1.00x", "1.00x", "1.00x"]
    assert own == ["2 x 40", "fused", "2.0 ms", "5.0 ms", "3.0 ms", "4.00x", "2.00x", "2.00x"]


def test_the_peak_of_a_process_has_its_cache_in_it(vattd: Vattd) -> None:
    large = dataclasses.replace(CELL, context=1 << 17)
    reserved_bytes = large.kv_bytes * large.context // large.tokens
    peaks = {kind: peak_of_a_process(large, kind, 1, 1, vattd.socket_dir) for kind in ("static", "per_layer")}
    assert reserved_bytes == 128 << 20
    assert peaks["static"] - peaks["per_layer"] > reserved_bytes // 2


def test_the_command_prints_a_row_for_each_cache_of_each_cell() -> None:
    threads = str(torch.get_num_threads())
    shape = ["--layers", "1", "--heads", "1", "--head-size", "8", "--page-size", "4KiB", "--threads", threads]
    sizes = ["--tokens", "8", "--tokens", "16", "--batch", "1", "--context", "32", "--steps", "2", "--measure", "times"]
    outcome = CliRunner().invoke(transformers_decode.main, [*shape, *sizes], catch_exceptions=False)
    rows = re.findall(r"│ +(\d+ x \d+) │ (\w+)", outcome.output)
    assert rows == [(f"1 x {tokens}", kind) for tokens in (8, 16) for kind in KINDS]


def test_tokens_that_do_not_fit_the_context_are_refused_with_the_option_to_change() -> None:
    outcome = CliRunner().invoke(transformers_decode.main, ["--tokens", "100", "--context", "64"])
    assert outcome.exit_code == 2
    assert "--context" in outcome.output
