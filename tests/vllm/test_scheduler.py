"""The scheduler by itself: vLLM's configuration and a rank's memory, and no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tests.daemon import Vattd
from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.integrations.vllm.channel import socket_path
from vattention.integrations.vllm.kv_memory import KVMemory
from vattention.integrations.vllm.plugin import lend_to
from vattention.integrations.vllm.scheduler import ORDERS, VattScheduler
from vattention.page_source import LeasePurpose
from vattention.session import Session

PAGE = 64 << 10
BLOCK_TOKENS = 32
POOL_PAGES = 64
BLOCKS = 9  # far fewer than the pool could hold: as with --num-gpu-blocks-override
# A block is one page.
SPEC = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=4, head_size=64, dtype=torch.float32)

Start = Callable[..., VattScheduler]


@pytest.fixture
def start(model_dir: str) -> Iterator[Start]:
    """Makes a scheduler whose memory is a vattd's; one a test."""
    with Vattd("--pool-max", str(POOL_PAGES * PAGE)) as vattd, ExitStack() as ended:

        def made(**options: Any) -> VattScheduler:
            lent = {"vattd": {"socket_dir": str(vattd.socket_dir)}}
            arguments = EngineArgs(
                model_dir,
                skip_tokenizer_init=True,
                max_model_len=256,
                max_num_seqs=4,
                enable_prefix_caching=False,
                **options,
            )
            config = arguments.create_engine_config()
            config.additional_config = lent
            lend_to(config)
            config.cache_config.num_gpu_blocks = BLOCKS
            session = ended.enter_context(Session.connect("vllm", socket_dir=vattd.socket_dir))
            geometry = BlockGeometry(BLOCKS, (Stripe(0, SPEC.page_size_bytes, SPEC.page_size_bytes),), PAGE)
            path: Path = socket_path(config.instance_id, config.parallel_config.data_parallel_index, 0)
            memory = KVMemory(session, geometry, path)
            scheduler = VattScheduler(
                vllm_config=config,
                kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], SPEC)]),
                structured_output_manager=StructuredOutputManager(config),
                block_size=BLOCK_TOKENS,
            )
            ended.callback(scheduler.shutdown)
            assert memory.tensor.numel() == BLOCKS * PAGE
            return scheduler

        yield made
    for thread in threading.enumerate():
        if thread.name.startswith("vattd-vllm"):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} outlives its engine"


def request(name: str, token_count: int, priority: int = 0) -> Request:
    tokens = list(range(1, token_count + 1))
    return Request(name, tokens, SamplingParams(max_tokens=99, ignore_eos=True), None, priority=priority)


def step(scheduler: VattScheduler) -> SchedulerOutput:
    """One step, in which a model without memory finds the next token of each request that has its prompt behind it."""
    output = scheduler.schedule()
    names = list(output.num_scheduled_tokens)
    sampled = [[] if scheduler.requests[name].is_prefill_chunk else [7] for name in names]
    scheduler.update_from_output(output, ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, sampled))
    return output


def test_a_request_that_waits_for_a_block_and_not_for_memory_leases_none(start: Start) -> None:
    scheduler = start()
    for name in "abc":
        scheduler.add_request(request(name, 3 * BLOCK_TOKENS))
    for _ in range(BLOCK_TOKENS // 2):
        assert "c" not in step(scheduler).num_scheduled_tokens  # the others have all eight blocks
    # A page for each block, and what is fetched ahead for four requests.
    assert scheduler._budget.credit_pages <= BLOCKS + 2 * 4
    assert not scheduler.is_short


def test_a_block_that_a_step_copies_keeps_its_memory_until_the_step_is_over(start: Start) -> None:
    scheduler = start()
    scheduler.add_request(request("a", BLOCK_TOKENS))
    with scheduler._lock:  # the upkeep would carry out orders in between
        scheduler._budget.lend(scheduler._ranks.lease(2, 2, LeasePurpose.GROW).page_count)
        source, target = scheduler._pool.get_new_blocks(2)
        copied = {source.block_id, target.block_id}
        pending = [([KVCacheBlockCopy(source.block_id, target.block_id)], [source, target])]
        scheduler.kv_cache_manager.take_kv_cache_block_copies = lambda: pending.pop() if pending else ([], [])
        output = step(scheduler)
        assert output.kv_cache_block_copies == [KVCacheBlockCopy(source.block_id, target.block_id)]
        assert copied <= set(getattr(output, ORDERS).back)
        later = scheduler._budget.orders(0, Usage())
        assert set(later.drop) == copied


def test_a_block_of_a_request_that_is_preempted_in_the_step_that_took_it_is_not_zeroed(start: Start) -> None:
    scheduler = start(scheduling_policy="priority")
    scheduler.needs_kv_cache_zeroing = scheduler._managers[0]._record_new_block_ids = True  # as for Mamba layers
    scheduler.add_request(request("low", 3 * BLOCK_TOKENS - 1, priority=1))
    step(scheduler)
    scheduler.add_request(request("high", 4 * BLOCK_TOKENS))
    step(scheduler)
    output = step(scheduler)  # low takes the last block, and loses it to high
    assert list(output.num_scheduled_tokens) == ["high"]
    (new_blocks,) = output.scheduled_cached_reqs.new_block_ids
    assert new_blocks is not None
    assert output.new_block_ids_to_zero == new_blocks[0]
