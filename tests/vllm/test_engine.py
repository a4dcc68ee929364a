"""vLLM with and without vattd: the same tokens and logprobs, to the last bit, on memory that follows the blocks."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import Vattd
from tests.operator import operator
from tests.vllm.engine_process import BLOCK_BYTES, IDLE, STARTED, Report, Spec
from tests.vllm.engines import STOCK, TIMEOUT_S, EngineProcess, lent, run_engine
from vatt.pages import page_count_of
from vatt.v1 import vatt_pb2 as pb
from vattention.integrations.vllm.upkeep import SPARE_DIVISOR
from vattention.page_source import LeasePurpose
from vattention.session import Session

MIB = 1 << 20
# Eight requests want up to 48 blocks of 512 KiB, 24 MiB; one alone six.
WANTED_BYTES = 24 * MIB
TIGHT_BYTES = 8 * MIB
MAX_REQUESTS, LONGEST_BLOCKS = 8, 6
# Where ranks or model runners are other than the default, rounding is too; those are compared with stock engines alike.
ONE_CORE_EACH = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}

StockRun = Callable[..., Report]


@pytest.fixture(scope="session")
def plain(model_dir: str) -> Spec:
    return Spec(model_dir)


@pytest.fixture(scope="session")
def caching(model_dir: str) -> Spec:
    """Twice the same requests, with a prefix that all share."""
    return Spec(model_dir, {"enable_prefix_caching": True}, shared_prefix=300, passes=2)


@pytest.fixture(scope="session")
def stock_plain(plain: Spec) -> Report:
    return run_engine(plain, STOCK)


@pytest.fixture(scope="session")
def stock_caching(caching: Spec) -> Report:
    return run_engine(caching, STOCK)


def assert_same_answers(mine: Report, theirs: Report) -> None:
    assert mine.tokens == theirs.tokens
    assert mine.logprobs == theirs.logprobs
    assert mine.tokens  # there were any


def assert_memory_followed_blocks(report: Report) -> None:
    """At every step the pages behind blocks are exactly those that blocks with memory need; what is held beyond is no
    more than the upkeep keeps for the steps to come, and what was leased for a request."""
    assert report.steps
    for step in report.steps:
        blocks = step["used_blocks"] + step["idle_blocks"] + 1  # the null block
        block_pages = BLOCK_BYTES // step["page_size_bytes"]
        assert step["needed_pages"] == blocks * block_pages
        assert step["mapped_pages"] <= step["leased_pages"]
        spare_pages = step["credit_pages"] - step["promised_pages"]
        kept_pages = max(2 * MAX_REQUESTS * block_pages, step["pool_pages"] // (SPARE_DIVISOR // 2))
        assert 0 <= spare_pages <= kept_pages + LONGEST_BLOCKS * block_pages


def assert_pages_came_back(vattd: Vattd) -> None:
    with operator(vattd.sockets) as admin:
        admin.until(lambda status: not status.sessions)
        assert leased_bytes(admin.status()) == 0


def leased_bytes(status: pb.GetStatusResponse) -> int:
    return sum(tenant.leased_bytes for tenant in status.tenants)


def test_the_answers_are_those_of_stock_vllm_and_memory_follows_blocks(plain: Spec, stock_plain: Report) -> None:
    with Vattd("--pool-max", "512MiB") as vattd:
        report = run_engine(dataclasses.replace(plain, watch=True, idle_s=30.0), lent(vattd.socket_dir))
        assert_same_answers(report, stock_plain)
        assert_memory_followed_blocks(report)
        assert report.preemptions == 0
        # Idle, nothing is held but the block that is read where a request has none.
        assert report.idle["needed_pages"] == report.idle["leased_pages"] == BLOCK_BYTES // (64 << 10)
        assert_pages_came_back(vattd)


def test_cached_prefixes_keep_their_memory_and_give_the_same_answers(caching: Spec, stock_caching: Report) -> None:
    with Vattd("--pool-max", "512MiB") as vattd:
        report = run_engine(dataclasses.replace(caching, watch=True, idle_s=30.0), lent(vattd.socket_dir))
        assert_same_answers(report, stock_caching)
        assert_memory_followed_blocks(report)
        assert report.idle["idle_blocks"] > 0
        assert report.idle["needed_pages"] == report.idle["leased_pages"]


def test_cached_prefixes_stay_within_their_budget(caching: Spec, stock_caching: Report) -> None:
    budget_blocks = 5
    options = {"vattd": {"prefix_cache_bytes": budget_blocks * BLOCK_BYTES}}
    spec = dataclasses.replace(caching, watch=True, engine={**caching.engine, "additional_config": options})
    with Vattd("--pool-max", "512MiB") as vattd:
        report = run_engine(spec, {**lent(vattd.socket_dir), "VATTD_VLLM": ""})
    assert_same_answers(report, stock_caching)
    assert 0 < max(step["idle_blocks"] for step in report.steps) <= budget_blocks


@pytest.mark.parametrize("page_size", ["64KiB", "2MiB"])
def test_a_pool_that_is_too_small_preempts_and_changes_no_answer(
    caching: Spec, stock_caching: Report, page_size: str
) -> None:
    pool_bytes = TIGHT_BYTES if page_size == "64KiB" else 2 * TIGHT_BYTES  # a page of each layer is 16 blocks: coarser
    with Vattd("--pool-max", f"{pool_bytes}", "--page-size", page_size) as vattd:
        report = run_engine(dataclasses.replace(caching, watch=True), lent(vattd.socket_dir))
        assert_same_answers(report, stock_caching)
        assert max(step["leased_pages"] * step["page_size_bytes"] for step in report.steps) <= pool_bytes
        assert_pages_came_back(vattd)
    if page_size == "64KiB":
        assert report.preemptions > 0


def test_two_engines_of_two_tenants_share_a_pool_that_is_smaller_than_both_want(
    plain: Spec, stock_plain: Report, caching: Spec, stock_caching: Report
) -> None:
    with Vattd("--pool-max", f"{WANTED_BYTES // 2}") as vattd:
        with (
            EngineProcess(plain, lent(vattd.socket_dir, "chat")) as chat,
            EngineProcess(caching, lent(vattd.socket_dir, "code")) as code,
        ):
            assert_same_answers(chat.report(), stock_plain)
            assert_same_answers(code.report(), stock_caching)
        assert_pages_came_back(vattd)


def test_a_tenants_max_that_is_lowered_under_load_preempts_and_changes_no_answer(
    caching: Spec, stock_caching: Report
) -> None:
    with Vattd("--pool-max", "512MiB") as vattd, operator(vattd.sockets) as admin:
        with EngineProcess(dataclasses.replace(caching, watch=True), lent(vattd.socket_dir)) as engine:
            engine.wait_until(STARTED)
            admin.until(lambda status: leased_bytes(status) > TIGHT_BYTES)
            admin.reserve("vllm", max_bytes=TIGHT_BYTES)
            admin.until(lambda status: leased_bytes(status) <= TIGHT_BYTES)
            report = engine.report()
        assert_same_answers(report, stock_caching)
        assert report.preemptions > 0
        assert_pages_came_back(vattd)


def test_an_idle_engine_gives_cached_prefixes_up_for_a_request_of_another_tenant(caching: Spec) -> None:
    """The engine does nothing, and is not asked to do anything: no step carries the orders to its worker."""
    pool_bytes = 64 * MIB
    with Vattd("--pool-max", f"{pool_bytes}") as vattd, operator(vattd.sockets) as admin:
        with EngineProcess(dataclasses.replace(caching, idle_s=TIMEOUT_S), lent(vattd.socket_dir)) as engine:
            engine.wait_until(IDLE)
            cached_bytes = leased_bytes(admin.status())
            assert cached_bytes > TIGHT_BYTES
            with Session.connect("other", socket_dir=vattd.socket_dir) as session:
                wanted_pages = (pool_bytes - BLOCK_BYTES) // session.page_size_bytes
                pages = session.lease(wanted_pages, purpose=LeasePurpose.ADMIT, wait_s=TIMEOUT_S)
                assert page_count_of(pages) == wanted_pages
                session.give_back(pages)


def test_an_engine_that_is_killed_leaves_nothing_behind(plain: Spec) -> None:
    with Vattd("--pool-max", "512MiB") as vattd, operator(vattd.sockets) as admin:
        with EngineProcess(dataclasses.replace(plain, passes=50), lent(vattd.socket_dir)) as engine:
            engine.wait_until(STARTED)
            admin.until(lambda status: leased_bytes(status) > TIGHT_BYTES)
            os.kill(engine.pid, signal.SIGKILL)
        assert_pages_came_back(vattd)


def test_tensor_parallel_ranks_in_processes_of_their_own_hold_their_parts(caching: Spec) -> None:
    spec = dataclasses.replace(caching, engine={**caching.engine, "tensor_parallel_size": 2})
    theirs = run_engine(spec, {**STOCK, **ONE_CORE_EACH})
    with Vattd("--pool-max", f"{WANTED_BYTES // 2}") as vattd:
        mine = run_engine(spec, {**lent(vattd.socket_dir), **ONE_CORE_EACH})
        assert_pages_came_back(vattd)
    assert_same_answers(mine, theirs)


def test_model_runner_v2_is_served_as_v1_is(caching: Spec) -> None:
    spec = dataclasses.replace(caching, requests=4, longest_prompt=400, new_tokens=6, interpret_triton=True)
    runner = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    theirs = run_engine(spec, {**STOCK, **runner})
    with Vattd("--pool-max", "512MiB") as vattd:
        mine = run_engine(dataclasses.replace(spec, watch=True), {**lent(vattd.socket_dir), **runner})
    assert_same_answers(mine, theirs)
    assert_memory_followed_blocks(mine)


def test_without_a_vattd_the_engine_says_how_to_start_one(plain: Spec) -> None:
    with EngineProcess(plain, lent(Path("/nonexistent"))) as process:
        assert "vattd start" in process.failure()


def test_a_tenant_that_could_not_hold_one_request_is_refused_at_the_start(plain: Spec) -> None:
    with Vattd("--pool-max", "2MiB") as vattd, EngineProcess(plain, lent(vattd.socket_dir)) as process:
        assert "max_model_len" in process.failure()
