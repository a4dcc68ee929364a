"""What a replay is made of, without memory: traces, models and their doubles, and the rules of the batch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vattctl.replay.batching import Batch, OutOfBlocks, Step
from vattctl.replay.engine import double_spec
from vattctl.replay.figures import Timeline
from vattctl.replay.models import MODELS, Double, Model
from vattctl.replay.schemes import BlockMemory, Scheme
from vattctl.replay.trace import CARRIED, Request, parse_trace, read_trace
from vattention.config import LAYOUTS
from vattention.layout import Geometry, KVCacheSpec, Layout, RowArithmetic

MIB = 1 << 20
HEADER = "arrival_s,prompt_tokens,output_tokens"

requests = st.builds(Request, st.floats(0, 50), st.integers(1, 300), st.integers(1, 60))


def test_the_carried_traces_are_whole_and_say_whose_they_are() -> None:
    traces = [read_trace(name) for name in CARRIED]
    assert [len(trace.requests) for trace in traces] == [19366, 8819]
    note = (resources.files("vattctl.replay") / "traces" / "README.md").read_text()
    for words in ("CC-BY-4.0", "Azure/AzurePublicDataset", "Changes made", "Splitwise", *CARRIED):
        assert words in note


def test_a_trace_may_have_more_columns_in_any_order_and_is_sorted_by_arrival() -> None:
    trace = parse_trace("t", ["output_tokens,who,arrival_s,prompt_tokens", "3,x,2.5,10", "4,y,0.5,20"], "t.csv")
    assert trace.requests == (Request(0.5, 20, 4), Request(2.5, 10, 3))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, "0,5,5", "1,many,5"], r"t.csv, line 3: prompt_tokens is 'many', not a whole number"),
        ([HEADER, "soon,5,5"], r"t.csv, line 2: arrival_s is 'soon', not a number"),
        ([HEADER, "nan,5,5"], r"line 2: arrival_s is nan"),
        ([HEADER, "-1,5,5"], r"line 2: arrival_s is -1"),
        ([HEADER, "1,0,5"], r"line 2: prompt_tokens is 0: at least 1"),
        ([HEADER, "1,5"], r"line 2: output_tokens is missing"),
        (["arrival_s,prompt_tokens", "1,5"], r"no column output_tokens"),
        ([HEADER], r"no requests"),
        ([], r"no column arrival_s"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said_with_its_line(lines: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_trace("t", lines, "t.csv")


def test_a_missing_trace_is_said_with_the_names_of_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="azure_conv, azure_code"):
        read_trace(str(tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="not a text file"):
        read_trace(str(tmp_path / "binary.csv"))


@given(requests, st.integers(1, 400))
def test_a_cut_request_fits_in_the_context_and_one_that_fits_is_not_cut(request_: Request, context: int) -> None:
    cut = request_.cut_to(context)
    assert cut.length_tokens <= context
    assert (cut == request_) == (request_.length_tokens <= context)
    assert cut.prompt_tokens == min(request_.prompt_tokens, context)


def test_the_models_have_the_bytes_a_token_that_they_are_known_for() -> None:
    kib = {name: model.token_bytes / 1024 for name, model in MODELS.items()}
    assert kib == {"llama-3-8b": 128, "yi-34b-tp2": 120, "llama-3-70b-tp4": 80, "phi-2": 320, "qwen2-0.5b": 12}


@pytest.mark.parametrize("layout", [Layout(name) for name in LAYOUTS])
@pytest.mark.parametrize("page_kib", [4, 64, 256, 2048])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_double_needs_as_many_pages_as_its_model_for_any_length(model: Model, page_kib: int, layout: Layout) -> None:
    double = Double.of(model, page_kib << 10)
    assert double.small_page_bytes >= 4096
    small = double_spec(double, layout, slot_count=4, context_length=8192)
    full = KVCacheSpec(model.num_layers, model.num_kv_heads, model.head_size, torch.float16, 4, 8192, layout)
    assert full.token_bytes == model.token_bytes == small.token_bytes * double.factor
    lengths = np.arange(8193)
    pages = [
        arithmetic.pool_pages(arithmetic.pages(lengths))
        for arithmetic in (
            RowArithmetic(Geometry.of(full, "host", double.page_size_bytes)),
            RowArithmetic(Geometry.of(small, "host", double.small_page_bytes)),
        )
    ]
    assert (pages[0] == pages[1]).all()


@pytest.mark.parametrize("page_bytes", [0, 1024, 4097, 2 * MIB + 1])
def test_a_page_that_the_host_cannot_stand_for_is_refused(page_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match=r"multiple of 4\.00 KiB"):
        Double.of(MODELS["phi-2"], page_bytes)


class Watched(BlockMemory):
    """Notes who came, and checks that what is held fits."""

    def __init__(self, scheme: Scheme, budget_tokens: int, slot_count: int) -> None:
        super().__init__(scheme, 1, budget_tokens, slot_count)
        self.admitted: list[int] = []

    def admit(self, prompt_tokens: int) -> int:
        self.admitted.append(prompt_tokens)
        return super().admit(prompt_tokens)


@given(
    st.lists(requests, min_size=1, max_size=30),
    st.sampled_from([Scheme.paged(16), Scheme.paged(256), Scheme.static(400)]),
    st.integers(512, 2000),
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0, 20.0]),
)
def test_every_request_makes_all_its_tokens_within_the_budget(
    trace: list[Request], scheme: Scheme, budget_tokens: int, slot_count: int, speed: float
) -> None:
    trace.sort(key=lambda request: request.arrival_s)
    memory = Watched(scheme, budget_tokens, slot_count)
    made = 0

    def observe(step: Step) -> None:
        nonlocal made
        made += step.running * step.step_count
        assert memory.blocks(step.lengths) <= memory.budget_blocks
        assert step.running == np.count_nonzero(step.lengths) <= slot_count

    batch = Batch(trace, memory, step_s=0.025, speed=speed)
    batch.run(observe)
    assert batch.finished == len(trace)
    # A preempted request goes on where it was: no token is made twice.
    assert made == sum(request.output_tokens for request in trace)
    assert batch.preemptions == len(memory.admitted) - len(trace)
    if scheme.is_static:
        assert memory.admitted == [request.prompt_tokens for request in trace]


def test_requests_are_admitted_in_the_order_of_their_arrival_and_never_before_it() -> None:
    memory = Watched(Scheme.paged(16), 10_000, slot_count=8)
    batch = Batch([Request(0.0, 5, 2), Request(10.0, 6, 2), Request(10.0, 7, 2)], memory, step_s=0.025, speed=2.0)
    seen: list[tuple[float, int]] = []
    batch.run(lambda step: seen.append((batch.clock.now_s, step.running)))
    assert memory.admitted == [5, 6, 7]
    assert max(now_s for now_s, running in seen if running == 0 and now_s < 5) < 5.0
    assert min(now_s for now_s, running in seen if running == 2) == pytest.approx(5.0)


def test_a_request_that_alone_outgrows_the_budget_is_an_error_and_no_endless_loop() -> None:
    batch = Batch([Request(0.0, 90, 60)], Watched(Scheme.paged(16), 100, 4), step_s=0.025, speed=0.0)
    with pytest.raises(OutOfBlocks):
        batch.run(lambda step: None)


def test_the_youngest_goes_back_when_the_running_outgrow_the_budget() -> None:
    memory = Watched(Scheme.paged(1), 100, slot_count=4)
    batch = Batch([Request(0.0, 40, 30), Request(0.0, 41, 30)], memory, step_s=0.025, speed=0.0)
    batch.run(lambda step: None)
    assert batch.preemptions == 1
    # By then both have grown to 100 tokens together: the younger one comes back with what it had made.
    assert memory.admitted == [40, 41, 51]


def test_a_thinned_timeline_keeps_the_averages() -> None:
    series = np.random.default_rng(0).random(1000)
    whole = Timeline(np.arange(1000.0), series, series * 2, series * 3, {"paged16": series * 4})
    thin = whole.thinned(100)
    assert len(thin.time_s) == 100
    assert thin.others["paged16"].mean() == pytest.approx(series.mean() * 4)
    assert thin.token_bytes.max() <= series.max()
